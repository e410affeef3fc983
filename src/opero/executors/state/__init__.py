"""The state of limits, and what is remembered of fallback values, apart from the executors that use it.

`home` is the interface of everything that keeps a state, and how a state moves. `budget`, `circuit`, `slots` and
`values` each have the decisions of one kind of state, as functions of values, policy and moment, and the home of that
kind in this process. `budgets` has those of several limits together, `pace` and `adaptive` those of pauses and of rates
that are found (`adaptive_budget`); `adaptive_limit` finds the limit of `adaptive_slots`, and `traffic` is what a
throttle counts. `shared_budget`, `shared_budgets`, `shared_circuit`, `shared_slots` and `shared_values` have its home
in a locked file. `sharing` moves states to files for worker processes. `stated` has executors keep their state where
their policy says: in a file for all processes of the machine (`machine_home`), or in redis (`redis_budget`,
`redis_budgets`, `redis_circuit` and `redis_slots` on `redis_store`; `measured_share` while that cannot be used).
`parked` keeps states of keys that are idle. `allowance` has all of that for retry budgets. `hedging` is what a
function keeps for its hedges.

When a policy is replaced (by a reload, or by `Binding.swap`), the executor of the new policy continues with the state
of the old one. From then on both hold one state: calls under way finish on the old executor, by the decisions of the
old policy, and what they report counts for both. State has the same owner as before, a profile or a function; with
another owner it starts anew.

    circuit_breaker        any change keeps the state and since when it holds, failures in a row, probes, and how calls
                             under way have been counted
      consecutive_failures,  what was counted is judged by the new number at the next result
      failure_rate, slow_rate, min_calls
      window               calls → calls: keeps the latest that fit; time → time: keeps what is within; else starts anew
      slow_call            from now on: calls that were counted stay slow or not
      open_for,            an open circuit stays open for the new time, from when it opened, with the same doubling
      open_for_max         and jitter
      half_open_calls,     probes that have begun, passed or failed count
      half_open_rate
      ignore               from now on
    rate_limit             any change keeps the moment of the next permit, permits that are reserved, and a pause
      rate                 from that moment on; as many permits stay saved up; a rate that is found stays as long as it
                           is to be found, and is at most what the new policy allows
      burst                permits saved up stay, as many as the new burst holds; more are saved at the rate
      limits               each limit keeps its budget, by its name; a new one begins with a full budget; a single
                           rate continues as the first limit with the same kind of cost
      cost, max_wait,      from now on
      cost_from_result,
      refund_on,
      feedback, max_pause
    throttle               any change keeps what has been counted
      ratio, window        from now on
    bulkhead               any change lets running calls keep their slots, and waiting calls their turn
      max_concurrent       smaller: no call enters until enough have left; greater: waiting calls get slots at once
      min_limit, max_limit an adaptive limit keeps what has been found, within the new bounds
      initial_limit        of no effect any more; it is where a limit begins that becomes adaptive
      max_wait             from now on: waiting calls keep the wait they began with
    retry                  any change keeps what has been spent of the budget
      budget               from now on
    hedge                  any change keeps how long the latest attempts took, and what is saved up of the budget
      after, max, budget   from now on
    fallback               any change keeps which values are set aside and which work, and calls in flight with each
      values, remember,    from now on: values stay set aside until their time, unless nothing is remembered any more
      order, weights
    cache                  keeps results, and computations under way, where the place is the same
      backend, namespace,  another place, which starts empty in memory
      key, ignore, version, url, cache_dir, arguments
      app, follow_code     another place in stores
      serializer, secret   in memory another place; in stores, entries that the new one cannot read are missing
      ttl, stale_ttl,      from now on: each result keeps the times it was stored with
      early_refresh, ttl_jitter, error_ttl
      cache_if             from now on
      errors               from now on; off: exceptions that were cached are not raised any more
      tags                 from now on; in stores, results stored with other tags are missing
      max_size             the least recently used go at once, down to the new size
      store_timeout,       from now on
      lock_timeout, allow_unsigned_pickle
    share, share_as, url   moves there, and is added to what other processes have there; back in one process it
                           continues with what was known
    on_store_error,        from now on
    store_timeout
    scope                  another owner: starts anew; a keyed scope keeps the states of all keys, whatever else changes
      max_keys             from now on
    enabled                off, or the policy removed: the state is gone

A policy that is equal to the old one keeps its executor.
"""
