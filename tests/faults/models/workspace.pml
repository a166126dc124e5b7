/* Somebody cleans up the workspace that a dead runner left, while another runner is about to use the same place.
 *
 * Mirrors: cleaning.survey and _removal (claim, judge again, save, move aside), workspace.making.prepare and _clear
 * (save what is there, make anew), workspace.removal.retire, _why_keep, preserve, discard, attempt's order "claim, then
 * make; remove, then release", and the lifeline of a tree: the agent inherits it, so a runner that is killed
 * leaves its workspace held until its last process ends (ledger/lifeline.py, Request.tree).
 * Holds: no directory is moved away under a living process that works in it, and no work is lost that was not saved.
 * Mutants, each of which must fail: NO_CLAIM (the cleaner does not claim the place), STALE_SURVEY (it believes what it
 * saw before it had the claim), OWN_LIFELINE (the lifeline ends with the runner, not with the agent),
 * NO_SAVE (prepare replaces what it finds without saving it), RELEASE_FIRST (the lease ends before the removal). */
#define N 3
#define CLEANER 3
#define DEATHS 2

byte owner;               /* whose lease has the workspace's claim; given only when the lifeline of the last is free */
bool held[N + 1];         /* its lifeline is locked, by the runner or by its agent */
bool alive[N + 1];        /* the runner, or the cleaner, itself */
bool agent[N + 1];        /* the agent's process works in the directory */
bool there;               /* the directory exists */
bool dirty;               /* with work that is nowhere else */
byte deaths;

#define S(step) if :: atomic { alive[me] -> step } :: atomic { !alive[me] -> goto dead } fi

/* Registering and releasing are one step each here: claim.pml has them in full. */
#define CLAIM if :: atomic { alive[me] && (owner == 0 || !held[owner]) -> owner = me; held[me] = true } \
                 :: atomic { alive[me] && owner != 0 && held[owner] -> goto refused } \
                 :: atomic { !alive[me] -> goto dead } fi
#define RELEASE S(held[me] = false; owner = (owner == me -> 0 : owner))

inline taken_away() { assert(!agent[1] && !agent[2]); assert(!dirty); there = false }

proctype runner(byte me) {
    CLAIM;
    if                                                          /* prepare: what an earlier one left is saved */
    :: there ->
#ifndef NO_SAVE
        S(dirty = false);
#endif
        S(taken_away())
    :: else
    fi;
    S(there = true);
    S(agent[me] = true);
    S(assert(there); dirty = agent[me]);                        /* it works */
    S(agent[me] = false);
    if :: S(dirty = false) :: S(skip) fi;                       /* committed, or it failed and stays as it is */
#ifdef RELEASE_FIRST
    RELEASE;
#endif
    if :: !dirty -> S(taken_away()) :: else fi;                 /* retire: what is clean and landed goes */
#ifndef RELEASE_FIRST
    RELEASE;
#endif
    goto done;
refused:
dead:
    skip;
done:
    skip
}

proctype works_on(byte me) {                                    /* an agent whose runner was killed */
    end: atomic { !alive[me] && agent[me] -> dirty = true };
    atomic { assert(there); agent[me] = false; held[me] = false }
}

proctype cleaner(byte me) {
    bool keep, gone;
    S(gone = !there || (owner != 0 && held[owner]));            /* survey: somebody is in it, or there is nothing */
    if :: gone -> goto done :: else fi;
    S(keep = dirty);
#ifndef NO_CLAIM
    CLAIM;
#endif
#ifndef STALE_SURVEY
    S(keep = dirty);                                            /* retire judges once more */
#endif
    if :: there && !keep -> S(taken_away()) :: else fi;
#ifndef NO_CLAIM
    RELEASE;
#endif
    goto done;
refused:
dead:
    skip;
done:
    skip
}

inline die(one) {
    atomic {
        alive[one] -> alive[one] = false; deaths++;
#ifdef OWN_LIFELINE
        held[one] = false
#else
        held[one] = agent[one]
#endif
    }
}

active proctype killer() {
    do :: deaths < DEATHS -> if :: die(1) :: die(2) :: die(3) :: break fi :: break od
}

init {
    atomic {
        alive[1] = true; alive[2] = true; alive[3] = true;
        run runner(1); run works_on(1); run runner(2); run works_on(2); run cleaner(CLEANER)
    }
}
