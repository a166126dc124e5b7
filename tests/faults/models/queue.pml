/* One slot, held by one runner and waited for by two without polling, and kill -9 at any step: is anybody forgotten?
 *
 * Mirrors: Operations.register and release, Steps._arrive, _settle, _schedule, _wake_first (ledger/steps.py),
 * FileLedger._come_in, _ring, _keep_watch (ledger/files.py), Placing._enqueue, _grant, _hide (ledger/placing.py),
 * Wait.until_gone, _follow_predecessor, _is_watchman, _start_watch (ledger/waiting.py). No tick is modelled: whoever
 * would be served only by one is an invalid end state here. A death is one step (waiting._SETTLING bridges the rest).
 * Holds: every living waiter is served (L1), in the order of tickets (I8), never two at once (I1), no dead (I13).
 * Mutants, each of which must fail: NO_HANDOFF (who releases schedules nobody), NO_PREDECESSOR (nobody notices the death of
 * the watchman), NO_RING, NO_WATCH (no inotify on the lifelines), HIDE_EARLY (the lifeline goes before the others
 * are served), BARGING (a newcomer does not look at the queue). That a death inside the gate is marked is told there
 * too, but with one slot and no change of terms the watchman alone makes good for it, so it has no mutant. */
#define N 3
#ifndef DEATHS
#define DEATHS 2
#endif

byte gate, mark;          /* who holds the flock; who is named in the file: a name that nobody took away is a death */
bool alive[N + 1], held[N + 1], nameless[N + 1];
bool bellopen[N + 1], bell[N + 1];
bool watching[N + 1], event[N + 1];
byte q[N + 1];            /* tickets of those in queue/ */
byte record;              /* who has the slot */
byte counter, deaths;

#define S(step) if :: atomic { alive[me] -> step } :: atomic { !alive[me] -> goto dead } fi
#define AHEAD(one, of) (q[one] != 0 && q[one] < q[of])
#define OLDER(one, of) (one != of && AHEAD(one, of) && held[one])

inline first_in_line() {  /* by ticket; 0 for an empty queue */
    w = 0;
    if :: q[1] != 0 -> w = 1 :: else fi;
    if :: q[2] != 0 && (w == 0 || q[2] < q[w]) -> w = 2 :: else fi;
    if :: q[3] != 0 && (w == 0 || q[3] < q[w]) -> w = 3 :: else fi
}

inline grant() {          /* Placing._grant: one rename */
    assert(record == 0);
    assert(!OLDER(1, w) && !OLDER(2, w) && !OLDER(3, w));
    q[w] = 0; record = w
}

inline schedule() {
    do
    :: atomic { !alive[me] -> goto dead }
    :: atomic {
        alive[me] -> first_in_line();
        if
        :: w == 0 || record != 0 -> break
        :: w != 0 && record == 0 && held[w] -> grant(); wake = w
        :: w != 0 && record == 0 && !held[w] -> q[w] = 0        /* Steps._drop_if_gone */
        fi
    }
    od
}

inline clear_dead() {     /* Steps._clear_all: the slot of a dead holder, the places of dead waiters */
    S(
        record = (record != 0 && !held[record] -> 0 : record);
        q[1] = (held[1] -> q[1] : 0); q[2] = (held[2] -> q[2] : 0); q[3] = (held[3] -> q[3] : 0)
    )
}

inline enter() {
    if
    :: atomic { alive[me] && gate == 0 -> gate = me; crashed = (mark != 0); mark = me; wake = 0 }
    :: atomic { !alive[me] -> goto dead }
    fi;
    if :: crashed -> schedule(); S(bell[1] = true; bell[2] = true; bell[3] = true); crashed = false :: else fi
}

inline leave() {          /* the bells are rung before the gate is marked free */
#ifndef NO_RING
    S(first_in_line(); bell[wake] = wake != 0; bell[w] = w != 0);               /* and Steps._wake_first */
#endif
    S(mark = 0; gate = 0; w = 0; wake = 0)
}

inline nearest_alive() {  /* the last one ahead of us that lives: our predecessor */
    p = 0;
    if :: OLDER(1, me) -> p = 1 :: else fi;
    if :: OLDER(2, me) && (p == 0 || q[2] > q[p]) -> p = 2 :: else fi;
    if :: OLDER(3, me) && (p == 0 || q[3] > q[p]) -> p = 3 :: else fi
}

inline closed(one) {      /* inotify tells the close of a lifeline that still has its name */
    held[one] = false;
    if
    :: !nameless[one] -> event[1] = event[1] || watching[1]; event[2] = event[2] || watching[2]; event[3] = event[3] || watching[3]
    :: else
    fi
}

proctype runner(byte me) {
    byte w, p, wake; bool crashed;
    if :: me == 1 -> goto have :: else fi;
    S(held[me] = true; bellopen[me] = true);
    enter();
    clear_dead();
#ifdef BARGING
    S(first_in_line());
    if :: record == 0 -> S(assert(w == 0 || !held[w]); record = me); leave(); goto have :: else fi;
#else
    schedule();
    if :: record == 0 -> S(record = me); leave(); goto have :: else fi;
#endif
    S(counter = counter + 1; q[me] = counter);                  /* Placing._enqueue */
    leave();
sleep:
    if :: q[me] == 0 -> goto woken :: else fi;
#ifndef NO_WATCH
    S(nearest_alive(); watching[me] = watching[me] || p == 0);  /* first of the living: we are the watchman */
#else
    S(nearest_alive());
#endif
    if
    :: p == 0 ->
        if                                                      /* FileLedger._keep_watch */
        :: mark != 0 || record == 0 || !held[record] -> enter(); clear_dead(); schedule(); leave()
        :: else
        fi;
        if :: q[me] == 0 -> goto woken :: else fi
    :: else
    fi;
    if                                                          /* poll() */
    :: atomic { alive[me] && (bell[me] || event[me]) -> bell[me] = false; event[me] = false }
#ifndef NO_PREDECESSOR
    :: atomic { alive[me] && p != 0 && !bellopen[p] -> skip }
#endif
    :: atomic { !alive[me] -> goto dead }
    fi;
    goto sleep;
woken:                                                          /* Operations._take_over writes to its own record */
have:
    S(bellopen[me] = false; watching[me] = false; bell[me] = false; event[me] = false; p = 0);
    enter();                                                    /* it has worked; Operations.release */
#ifdef HIDE_EARLY
    S(nameless[me] = true);
#endif
    S(record = 0);
#ifndef NO_HANDOFF
    schedule();
#endif
    leave();
    S(nameless[me] = true; closed(me));
    goto done;
dead:
    skip;
    atomic { w = 0; p = 0; wake = 0; crashed = false };
done:
    skip
}

inline die(one) {
    atomic {
        alive[one] -> alive[one] = false; deaths++; bellopen[one] = false; watching[one] = false; closed(one);
        bell[one] = false; event[one] = false;
        if :: gate == one -> gate = 0 :: else fi
    }
}

active proctype killer() {
    do :: deaths < DEATHS -> if :: die(1) :: die(2) :: die(3) :: break fi :: break od
}

init {
    atomic {
        alive[1] = true; alive[2] = true; alive[3] = true; record = 1; held[1] = true;
        run runner(1); run runner(2); run runner(3)
    }
}
