# The test run itself: test/all calls this as a normal user in a copy of the tree that is built and
# installed.  Its last line counts: each assertion of a TAP or unit test, each regress test and
# each isolation test.  A check that is no test (format, warnings, cppcheck) counts when it fails,
# and so does a runner that ran nothing.

. test/lib/server.sh

# Arguments name the parts to run: checks, common, host, regress, isolation, tap.  None: all.
parts=" ${*:-checks common host regress isolation tap} "
passed=0
failed=0
failures=()

wanted()
{
	[[ $parts == *" $1 "* ]]
}

say()
{
	printf '\n== %s\n' "$*"
}

add_failure()
{
	failed=$((failed + 1))
	failures+=("$1")
}

check()
{
	local name=$1

	shift
	say "$name"
	"$@" || add_failure "$name"
}

# Runs something that counts its TAP by way of test/lib/prove.
run_tap()
{
	local name=$1 status=0 p f ran=0 bad=0

	shift
	say "$name"
	export ENVRT_COUNTS=$ENVRT_WORK/counts
	: >"$ENVRT_COUNTS"
	"$@" || status=$?
	while read -r p f; do
		ran=$((ran + p + f))
		bad=$((bad + f))
		passed=$((passed + p))
		failed=$((failed + f))
	done <"$ENVRT_COUNTS"
	unset ENVRT_COUNTS
	[ "$bad" = 0 ] || failures+=("$name: $bad")
	if [ "$ran" = 0 ]; then
		add_failure "$name: no test was run"
	elif [ "$status" != 0 ] && [ "$bad" = 0 ]; then
		add_failure "$name: exit status $status"
	fi
}

# Runs pg_regress or its isolation kind by way of the PGXS target that users call.
run_regress()
{
	local name=$1 directory=$2 status=0 ok bad

	shift 2
	say "$name"
	mkdir -p "$directory"
	make -s installcheck "$@" 2>&1 | tee "$directory/output" || status=$?
	ok=$(grep -cE '\.\.\. ok( |$)|^ok +[0-9]' "$directory/output" || true)
	bad=$(grep -cE '\.\.\. (FAILED|failed)|^not ok +[0-9]' "$directory/output" || true)
	passed=$((passed + ok))
	failed=$((failed + bad))
	[ "$bad" = 0 ] || failures+=("$name: $bad")
	if [ -s "$directory/regression.diffs" ]; then
		cat "$directory/regression.diffs"
	fi
	if [ $((ok + bad)) = 0 ]; then
		add_failure "$name: no test was run"
	elif [ "$status" != 0 ] && [ "$bad" = 0 ]; then
		add_failure "$name: exit status $status"
	fi
}

if wanted checks; then
	check format make -s check-format
	check names make -s check-sql
	check layers make -s check-layers
	check documents make -s check-documents
	check warnings make -s -k -j"$(nproc)" check-warnings
	check cppcheck make -s check-cppcheck
fi

prove=$PWD/test/lib/prove
if wanted common; then
	run_tap "unit tests of src/shared and tools" make -s check-common PROVE="$prove" PROVE_FLAGS=--timer
fi
if wanted host; then
	run_tap "tests of the driver host" make -s -k -j2 --output-sync=target check-host PROVE="$prove" PROVE_FLAGS=--timer
fi

if wanted regress || wanted isolation; then
	fixture_start
	server_start "fsync = off" "envrt.runtime_api_candidates = '$ENVRT_TEST_API'"
	! wanted regress || run_regress regress build/regress ISOLATION= TAP_TESTS=
	! wanted isolation || run_regress isolation build/isolation REGRESS= TAP_TESTS=
	server_stop
	fixture_stop
fi

if wanted tap; then
	unset "${!PGH@}" PGPORT PGUSER PGDATABASE
	# Two at a time: each of them waits most of its time.  The longest one first.
	tap_tests=(test/t/*_fault_matrix.pl)
	for file in test/t/*.pl; do
		[ "$file" = "${tap_tests[0]}" ] || tap_tests+=("$file")
	done
	run_tap "TAP tests" "$prove" --timer -j2 -I test/lib "${tap_tests[@]}"
fi

echo
for failure in ${failures[@]+"${failures[@]}"}; do
	printf 'FAILED: %s\n' "$failure"
done
status=0
[ "$failed" = 0 ] || status=1
server_stop
fixture_stop
printf '%d passed, %d failed\n' "$passed" "$failed"
exit "$status"
