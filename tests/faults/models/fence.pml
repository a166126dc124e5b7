/* A lease is revoked while its holder is alive but silent; the holder wakes up and goes on as if nothing were.
 *
 * Mirrors: Steps._settle, _end_if_gone, _fence (ledger/steps.py), liveness.may_fence and may_publish,
 * Operations.publishing, Steps._mine (ledger/operations.py, steps.py), Placing._revoke, Standing.effective
 * (admission.py): a fenced lease keeps its sticky claims (workspace, branch) until its lifeline is free.
 * Holds: what is published carries tokens that never go back, and nobody is fenced inside a window that is within its
 * bound (I10, I11, I16); no two are in the workspace at once (I12).
 * Mutants, each of which must fail: NO_TOKEN (publishing does not look whose lease it is), NO_WINDOW (fencing does not
 * look whether somebody publishes), CHECK_OUTSIDE (the token is checked before the gate is entered), FREE_STICKY (a
 * fence frees the workspace too), NO_GATE. */
#define N 2
#define DEATHS 1

byte gate;
bool alive[N + 1];
bool held[N + 1];
bool silent[N + 1];       /* the stamp is older than the heartbeat timeout */
bool window[N + 1];       /* the lifeline says P: publishing, within 60 s */
bool fenced[N + 1];       /* its record lies in fenced/ */
bool inside[N + 1];       /* works in the workspace */
byte record;              /* whose record stands in runners/ */
byte counter, published;
byte deaths;

#define S(step) if :: atomic { alive[me] -> step } :: atomic { !alive[me] -> goto dead } fi

inline enter() {
#ifndef NO_GATE
    if :: atomic { alive[me] && gate == 0 -> gate = me } :: atomic { !alive[me] -> goto dead } fi
#else
    S(skip)
#endif
}

inline leave() {
#ifndef NO_GATE
    S(gate = 0)
#else
    S(skip)
#endif
}

proctype runner(byte me) {
    byte token, rounds; bool mine, may;
    byte other = 3 - me;
again:
    if :: rounds == 2 -> goto done :: else -> rounds++ fi;
    S(held[me] = true; silent[me] = false);
    enter();
    if
    :: record == other ->                                       /* Steps._end_if_gone */
        if
        :: !held[other] -> S(record = 0)                        /* _reap */
#ifndef NO_WINDOW
        :: held[other] && silent[other] && !window[other] ->
#else
        :: held[other] && silent[other] ->
#endif
            S(record = (record == other -> 0 : record); fenced[other] = true)     /* _revoke: one rename */
        :: held[other] && !(silent[other] && !window[other]) -> leave(); S(held[me] = false); goto again
        fi
    :: else
    fi;
#ifndef FREE_STICKY
    if                                                          /* the workspace of a fenced, living one is held */
    :: fenced[other] && held[other] -> leave(); S(held[me] = false); goto again
    :: else -> S(fenced[other] = false)
    fi;
#endif
    S(counter = counter + 1; token = counter);
    S(record = me);
    leave();
    S(inside[me] = true; assert(!(inside[1] && inside[2])));
    if :: S(silent[me] = true) :: S(skip) fi;                   /* stopped for long, then woken up again */
#ifdef CHECK_OUTSIDE
    S(mine = (record == me && !fenced[me]));
    S(window[me] = mine);
#else
    enter();                                                    /* Operations.publishing */
#ifdef NO_TOKEN
    S(mine = true);
#else
    S(mine = (record == me && !fenced[me]));                    /* Steps._mine */
#endif
    S(window[me] = mine);
    leave();
#endif
    if
    :: mine ->
        S(assert(record == me && token > published); published = token);          /* the branch moves */
        S(window[me] = false)
    :: else                                                     /* LeaseLost: nothing is written */
    fi;
    S(inside[me] = false);
    enter();
    S(record = (record == me -> 0 : record); fenced[me] = false);
    leave();
    S(held[me] = false);
    goto again;
dead:
    skip;
done:
    skip
}

inline die(one) {
    atomic { alive[one] -> alive[one] = false; inside[one] = false; deaths++ };
    if
    :: atomic { gate == one -> gate = 0 }; atomic { held[one] = false; window[one] = false }
    :: atomic { held[one] = false; window[one] = false }; atomic { if :: gate == one -> gate = 0 :: else fi }
    fi
}

active proctype killer() {
    do :: deaths < DEATHS -> if :: die(1) :: die(2) :: break fi :: break od
}

init { atomic { alive[1] = true; alive[2] = true; run runner(1); run runner(2) } }
