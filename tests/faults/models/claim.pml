/* One exclusive claim, three runners that ask for it again and again, and kill -9 at any step.
 *
 * Mirrors: Gate.held (ledger/gate.py), Placing._open, _show, _admit, _remove (ledger/placing.py), Steps._arrive,
 * _settle, _reap (ledger/steps.py), lifeline.is_held (ledger/lifeline.py). Each S() is one system call; a process
 * may be killed before each, and the kernel lets go of its gate and of its lifeline one after the other.
 * Holds: no two living processes have the claim (I2), tokens grow with every grant (I3), the dead refuse nobody (I9),
 * nobody waits for the gate for ever (no invalid end state).
 * Mutants, each of which must fail: NO_GATE, PID_ONLY (no lifeline: a number that is in use counts as alive),
 * AGE_ONLY (silence counts as death), LIFELINE_LATE (the record is seen before its lifeline is locked),
 * COUNTER_LATE (the token is counted after it was given). */
#define N 3
#define ROUNDS 1
#define DEATHS 2

byte gate;                /* who holds the flock on `lock` */
bool alive[N + 1];
bool held[N + 1];         /* the lifeline is locked */
bool reused[N + 1];       /* the pid of the dead belongs to a stranger now */
bool has[N + 1];          /* believes that the claim is its own */
byte record;              /* whose record stands in runners/ */
byte counter, granted;    /* on the disk; the largest token that was ever given */
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

inline look() {           /* Steps._look: is the holder gone? */
#ifdef PID_ONLY
    gone = !(alive[other] || reused[other]); assert(gone || alive[other] || held[other])
#else
#ifdef AGE_ONLY
    if :: gone = true :: gone = !held[other] fi
#else
    gone = !held[other]; assert(gone || alive[other] || held[other])
#endif
#endif
}

proctype runner(byte me) {
    byte rounds, other, token; bool gone;
again:
    if :: rounds == ROUNDS -> goto done :: else -> rounds++ fi;
#ifndef LIFELINE_LATE
    S(held[me] = true);                                         /* Placing._open, then _show */
#endif
    enter();
settle:
    S(other = record);
    if
    :: other == 0 -> skip
    :: other == me -> S(record = 0); goto settle                /* left by an earlier life of this id */
    :: else ->
        S(look());
        if
        :: gone -> S(record = (record == other -> 0 : record)); goto settle      /* Steps._reap */
        :: else -> leave(); S(held[me] = false); goto again                      /* refused */
        fi
    fi;
    S(token = counter + 1);
#ifndef COUNTER_LATE
    S(counter = token);                                         /* Gate.next, before it is used */
#endif
    S(record = me; assert(token > granted); granted = token);   /* Placing._admit: one rename */
#ifdef COUNTER_LATE
    S(counter = token);
#endif
    leave();
#ifdef LIFELINE_LATE
    S(held[me] = true);
#endif
    S(has[me] = true; assert(has[1] + has[2] + has[3] == 1));
    S(has[me] = false);                                         /* its work is over */
    enter();
    S(record = (record == me -> 0 : record));                   /* Placing._remove: one unlink */
    leave();
    S(held[me] = false);
    goto again;
dead:
    skip;
done:
    skip
}

inline die(one) {
    atomic { alive[one] -> alive[one] = false; has[one] = false; deaths++ };
    if                    /* the kernel closes its files, one after the other */
    :: atomic { gate == one -> gate = 0 }; held[one] = false
    :: held[one] = false; atomic { if :: gate == one -> gate = 0 :: else fi }
    fi;
    if :: reused[one] = true :: skip fi
}

active proctype killer() {
    do :: deaths < DEATHS -> if :: die(1) :: die(2) :: die(3) :: break fi :: break od
}

init {
    atomic {
        alive[1] = true; alive[2] = true; alive[3] = true;
        run runner(1); run runner(2); run runner(3)
    }
}
