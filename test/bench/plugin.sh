# What calls of plugins cost: the driver host's answer next to the worker's own, without anything between.
# test/bench/run calls this as a normal user in a copy of the tree that is built.

turns=${BENCH_PLUGIN_TURNS:-9}
calls=${BENCH_PLUGIN_CALLS:-40}

printf '\ncalls of a plugin written for the SDK, milliseconds (medians of %d turns of %d; bare: the same lines to the worker itself; copied: by way of a process that only copies)\n\n' "$turns" "$calls"
printf '%-31s %8s %8s %8s %6s %6s\n' "" host copied bare ratio copied
perl test/bench/plugin_turns.pl "$turns" "$calls"
