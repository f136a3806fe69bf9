# What test/demo shows and test/psql starts from; called as a normal user in a copy of the tree
# that is built and installed.
#
#   demo.sh         runs the demonstration, and fails when something is not as it should be
#   demo.sh psql    makes the environments and the runs, and opens psql

. test/lib/server.sh

if [ -t 1 ]; then
	bold=$(printf '\033[1m') plain=$(printf '\033[0m')
else
	bold='' plain=''
fi

title()
{
	printf '\n%s%s%s\n\n' "$bold" "$*" "$plain"
}

# psql variables that the statements use.  The key is read from its file by psql, so that it is in
# no argument list.
variables()
{
	cat <<'END'
\set ON_ERROR_STOP on
\pset footer off
\pset null '(null)'
\set ssh_user `printf %s "$ENVRT_TEST_SSH_USER"`
\set ssh_port `printf %s "$ENVRT_TEST_SSH_PORT"`
\set workspace `printf %s "$ENVRT_WORK/home/workspace"`
\set private_key `cat "$ENVRT_TEST_SSH_DIR/user_ed25519"`
\set known_hosts `cat "$ENVRT_TEST_SSH_DIR/known_hosts"`
END
	local name

	for name in company agent environment_local environment_ssh environment_fake environment_sandbox \
		run_local run_ssh run_fake run_sandbox lease_ssh lease_sandbox lease_long execution data_directory pushed pulled; do
		printf '\\set %s %s\n' "$name" "${!name:-none}"
	done
}

# Runs statements quietly and prints what they return.
query()
{
	{ variables; printf '%s\n' "$1"; } | psql -X -q -A -t
}

# Prints statements as they were written, with their variables, and then their result.
show()
{
	printf '%s\n' "$1" | sed 's/^/    /'
	printf '\n'
	{ variables; printf '%s\n' "$1"; } | psql -X -q
}

expect()
{
	local what=$1 got=$2 expected=$3

	[ "$got" = "$expected" ] || die "Not as it should be: $what is \"$got\", not \"$expected\"."
}

# In a chroot, and where a kernel forbids it, nobody but root can make the namespaces.
has_sandboxes=
! bwrap --unshare-all --ro-bind / / true 2>/dev/null || has_sandboxes=1

fixture_start
mkdir -m 700 "$ENVRT_WORK/sandboxes"
server_start "fsync = off" "envrt.runtime_api_candidates = '$ENVRT_TEST_API'" \
	"envrt.sandbox_directory = '$ENVRT_WORK/sandboxes'" "envrt.sandbox_on_data_filesystem = on"
query 'CREATE EXTENSION envrt;'
company=$(query "INSERT INTO envrt.companies (name) VALUES ('Acme') RETURNING id;")
agent=$(query "INSERT INTO envrt.agents (company_id, name) VALUES (:'company', 'Coder') RETURNING id;")

ssh_statement="SELECT id, driver, config ->> 'privateKey' AS key, config -> 'privateKeySecretRef' ->> 'type' AS key_reference
FROM envrt_create_environment(:'company', 'Build host', 'ssh', jsonb_build_object(
       'host', '127.0.0.1', 'port', :ssh_port, 'username', :'ssh_user',
       'remoteWorkspacePath', :'workspace',
       'privateKey', :'private_key', 'knownHosts', :'known_hosts'));"
fake_statement="INSERT INTO envrt.environments (company_id, name, driver, config)
VALUES (:'company', 'Fake sandbox', 'sandbox', '{\"provider\": \"fake\", \"image\": \"ubuntu:24.04\", \"reuseLease\": false}')
RETURNING id, driver, config;"
sandbox_statement="SELECT id, driver, config FROM envrt_create_environment(:'company', 'Sandbox', 'sandbox', '{\"provider\": \"bubblewrap\"}');"
runs_statement="INSERT INTO envrt.heartbeat_runs (company_id, agent_id, status)
SELECT :'company', :'agent', 'running' FROM generate_series(1, 4);"

if [ "${1:-}" = psql ]; then
	{
		query "SELECT envrt_ensure_local_environment(:'company');"
		query "$ssh_statement"
		query "$fake_statement"
		[ -z "$has_sandboxes" ] || query "$sandbox_statement"
		query "$runs_statement"
	} >/dev/null
	cat <<END

A throwaway server with envrt, an sshd and a health server, all on this machine; it ends with psql.

  SELECT id, name, driver FROM envrt.environments;
  SELECT id, status FROM envrt.heartbeat_runs;
  SELECT * FROM envrt_acquire_lease(company_id, environment_id, run_id);
  SELECT * FROM envrt_execute(lease_id, 'ls', ARRAY['-la']);      -- in a lease of the SSH host or the sandbox
  SELECT * FROM envrt_release_leases(run_id);
  \\df envrt_*    \\dt envrt.*    \\dv envrt.*

END
	# Ctrl-C cancels a statement in psql and means nothing to us.
	trap : INT
	status=0
	psql -X || status=$?
	exit "$status"
fi

title "1. Environments: this machine, an SSH host, a sandbox, and one that only pretends"
show "SELECT id, name, driver FROM envrt_ensure_local_environment(:'company');"
show "$ssh_statement"
echo "    The private key went into envrt.company_secret_versions, encrypted; the config keeps a reference."
echo
show "$fake_statement"
if [ -n "$has_sandboxes" ]; then
	show "$sandbox_statement"
else
	echo "    Users of this machine can make no namespaces (a chroot does that, too): no real sandbox here."
	echo
fi

title "2. Four runs"
show "$runs_statement
SELECT id, status FROM envrt.heartbeat_runs ORDER BY id;"

environment_local=$(query "SELECT id FROM envrt.environments WHERE driver = 'local';")
environment_ssh=$(query "SELECT id FROM envrt.environments WHERE driver = 'ssh';")
environment_fake=$(query "SELECT id FROM envrt.environments WHERE config ->> 'provider' = 'fake';")
environment_sandbox=$(query "SELECT id FROM envrt.environments WHERE config ->> 'provider' = 'bubblewrap';")
{ read -r run_local; read -r run_ssh; read -r run_fake; read -r run_sandbox; } \
	< <(query 'SELECT id FROM envrt.heartbeat_runs ORDER BY id;')

title "3. A lease for each"
show "SELECT provider, status, lease_policy
FROM envrt_acquire_lease(:'company', :'environment_local', :'run_local');"
show "SELECT provider, status, provider_lease_id
FROM envrt_acquire_lease(:'company', :'environment_fake', :'run_fake');"
show "SELECT provider, status, metadata ->> 'host' AS host, metadata ->> 'remoteCwd' AS remote_cwd,
       metadata ->> 'paperclipApiUrl' AS api_url
FROM envrt_acquire_lease(:'company', :'environment_ssh', :'run_ssh');"

[ -z "$has_sandboxes" ] || show "SELECT provider, status, provider_lease_id
FROM envrt_acquire_lease(:'company', :'environment_sandbox', :'run_sandbox');"

expect "the number of active leases" \
	"$(query "SELECT count(*) FROM envrt.environment_leases WHERE status = 'active';")" $((has_sandboxes + 3))
expect "the API URL" "$(query "SELECT metadata ->> 'paperclipApiUrl' FROM envrt.environment_leases WHERE provider = 'ssh';")" \
	"$ENVRT_TEST_API"

title "4. The workspace is there: one command over plain ssh"
remote_cwd=$(query "SELECT metadata ->> 'remoteCwd' FROM envrt.environment_leases WHERE provider = 'ssh';")
remote()
{
	ssh -F none -o BatchMode=yes -o IdentitiesOnly=yes -o StrictHostKeyChecking=yes \
		-o UserKnownHostsFile="$ENVRT_TEST_SSH_DIR/known_hosts" -i "$ENVRT_TEST_SSH_DIR/user_ed25519" \
		-p "$ENVRT_TEST_SSH_PORT" "$ENVRT_TEST_SSH_USER@127.0.0.1" "$@"
}
printf '    $ ssh -p %s %s@127.0.0.1 "cd %s && touch proof && pwd && ls"\n\n' \
	"$ENVRT_TEST_SSH_PORT" "$ENVRT_TEST_SSH_USER" "$remote_cwd"
remote "cd '$remote_cwd' && touch proof && pwd && ls" | tee "$ENVRT_WORK/remote" | sed 's/^/    /'
expect "what ssh says" "$(tr '\n' ' ' <"$ENVRT_WORK/remote")" "$remote_cwd proof "

title "5. Commands: on the SSH host, and in a sandbox that reaches neither network nor database"
lease_ssh=$(query "SELECT id FROM envrt.environment_leases WHERE provider = 'ssh';")
lease_sandbox=$(query "SELECT id FROM envrt.environment_leases WHERE provider = 'bubblewrap';")
data_directory=$(query "SHOW data_directory;")
show "SELECT exit_code, stdout FROM envrt_execute(:'lease_ssh', 'ls', ARRAY['-1']);"
expect "what is listed on the SSH host" "$(query "SELECT stdout FROM envrt_execute('$lease_ssh', 'ls', ARRAY['-1']);")" proof
if [ -n "$has_sandboxes" ]; then
	show "SELECT exit_code, stdout, stderr FROM envrt_execute(:'lease_sandbox', 'sh', ARRAY['-c',
       'echo \"\$GREETING\" > hello; cat hello; pwd; exit 3'], env => '{\"GREETING\": \"hello from a sandbox\"}');"
	show "SELECT exit_code, stderr FROM envrt_execute(:'lease_sandbox', 'cat', ARRAY[:'data_directory' || '/postgresql.conf']);"
	show "SELECT stdout AS network_interfaces FROM envrt_execute(:'lease_sandbox', 'sh', ARRAY['-c', 'tail -n +3 /proc/net/dev | cut -d: -f1']);"
	expect "what the sandbox keeps" "$(query "SELECT stdout FROM envrt_execute('$lease_sandbox', 'cat', ARRAY['hello']);")" "hello from a sandbox"
	expect "that the data directory is out of reach" \
		"$(query "SELECT exit_code <> 0 FROM envrt_execute('$lease_sandbox', 'ls', ARRAY['$data_directory']);")" t
	expect "its network interfaces" "$(query "SELECT trim(E' \\n' FROM stdout) FROM envrt_execute('$lease_sandbox', 'sh', ARRAY['-c', 'tail -n +3 /proc/net/dev | cut -d: -f1']);")" lo
fi

title "6. A command that takes five seconds, run after the commit: its lines as they come"
lease_long=$lease_ssh
[ -z "$has_sandboxes" ] || lease_long=$lease_sandbox
start_statement="SELECT envrt_start_execution(:'lease_long', 'sh', ARRAY['-c',
       'for i in 1 2 3 4 5; do echo line \$i; sleep 1; done']) AS execution;"
printf '%s\n' "$start_statement" | sed 's/^/    /'
execution=$(query "$start_statement")
follow_statement="\\set FETCH_COUNT 1
SELECT (line).output FROM (SELECT envrt_follow_execution(:'execution') AS line) follow;"
printf '%s\n\n' "$follow_statement" | sed 's/^/    /'
{ variables; printf '%s\n' "$follow_statement"; } | psql -X -q -A -t | sed -u '/^$/d' | {
	begun=$SECONDS
	while IFS= read -r line; do
		printf '    after %d s: %s\n' $((SECONDS - begun)) "$line" | tee -a "$ENVRT_WORK/stream"
	done
}
expect "the number of lines that came" "$(grep -c 'line [1-5]$' "$ENVRT_WORK/stream")" 5
[ "$(cut -d: -f1 "$ENVRT_WORK/stream" | sort -u | wc -l)" -ge 3 ] || die "Not as it should be: the lines came all at once."
echo
show "SELECT exit_code, timed_out, metadata FROM envrt_await_execution(:'execution');"

if [ -n "$has_sandboxes" ]; then
	title "7. Files: one from the server into the sandbox, its result back"
	pushed=$ENVRT_WORK/input.txt
	pulled=$ENVRT_WORK/output.txt
	seq 1 100 >"$pushed"
	show "SELECT files, bytes FROM envrt_push_files(:'lease_sandbox', :'pushed', 'input.txt');
SELECT exit_code FROM envrt_execute(:'lease_sandbox', 'sh', ARRAY['-c', 'sort -rn input.txt | head -3 > output.txt']);
SELECT files, bytes FROM envrt_pull_files(:'lease_sandbox', :'pulled', 'output.txt');"
	sed 's/^/    /' "$pulled"
	expect "what was pulled" "$(tr '\n' ' ' <"$pulled")" "100 99 98 "
fi

title "8. Release, by SQL: one by its run, the others by the end of theirs"
show "SELECT provider, status, released_at IS NOT NULL AS is_released
FROM envrt_release_leases(:'run_local');"
show "UPDATE envrt.heartbeat_runs SET status = 'succeeded' WHERE id = :'run_ssh';
UPDATE envrt.heartbeat_runs SET status = 'cancelled' WHERE id IN (:'run_fake', :'run_sandbox');
SELECT l.provider, r.status AS run, l.status AS lease
FROM envrt.heartbeat_runs r JOIN envrt.environment_leases l ON l.heartbeat_run_id = r.id ORDER BY 1;"

if [ -n "$has_sandboxes" ]; then
	show "SELECT envrt_await_cleanup(:'lease_sandbox') AS cleanup_of_the_sandbox;"
	expect "what is left of the sandbox" "$(ls -A "$ENVRT_WORK/sandboxes/leases")" ""
fi

title "9. Active leases"
show "SELECT id, provider FROM envrt.environment_leases WHERE status = 'active';"
expect "the number of active leases" \
	"$(query "SELECT count(*) FROM envrt.environment_leases WHERE status = 'active';")" 0
expect "the number of released leases" \
	"$(query "SELECT count(*) FROM envrt.environment_leases WHERE status = 'released';")" $((has_sandboxes + 3))

server_stop
fixture_stop
title "None is left.  To try it yourself: make psql"
