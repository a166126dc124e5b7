"""Who holds what now: register, claim, wait, renew, release, fence, sweep. One protocol, two stores."""
