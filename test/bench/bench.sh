# The measurements; test/bench/run calls this as a normal user in a copy of the tree that is built
# and installed.
#
# Contenders take turns, so that what else the machine does meets both.  The ratio for SQL is the
# median of the ratios of neighbouring turns; for ssh, of the medians.
# Every client walks through runs of its own: a run has a few leases, as in life.

. test/lib/server.sh
. test/bench/commands.sh
. test/bench/transfers.sh

seconds=${BENCH_SECONDS:-2}
rounds=${BENCH_ROUNDS:-5}
ssh_rounds=${BENCH_SSH:-10}
runs_per_client=20000
clients_max=8

bench=$ENVRT_WORK/bench
mkdir -p "$bench"

sql()
{
	psql -X -q -A -t -v ON_ERROR_STOP=1 "$@"
}

median()
{
	sort -g "$1" | awk '{ v[NR] = $1 } END { if (NR == 0) exit 1; print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

ratio()
{
	awk -v a="$1" -v b="$2" 'BEGIN { if (b > 0) printf "%.2f", a / b; else printf "?" }'
}

# Two databases alike, but that one has a million ended leases and ten thousand active ones.
size_rows=${BENCH_SIZE:-1000000}

fill()
{
	local database=$1 ended=$2 active=$3

	sql -d postgres -c "CREATE DATABASE $database"
	sql -d "$database" <<END
CREATE EXTENSION envrt;
SET session_replication_role = replica;
INSERT INTO envrt.companies (id, name) VALUES ('00000000-0000-0000-0000-0000000c0000', 'Bench');
INSERT INTO envrt.agents (id, company_id, name) VALUES ('00000000-0000-0000-0000-0000000a0000', '00000000-0000-0000-0000-0000000c0000', 'Bench');
INSERT INTO envrt.heartbeat_runs (id, company_id, agent_id, status)
SELECT lpad(to_hex(n), 32, '0')::uuid, '00000000-0000-0000-0000-0000000c0000', '00000000-0000-0000-0000-0000000a0000', 'running'
FROM generate_series(0, $runs_per_client - 1) n;
INSERT INTO envrt.environments (id, company_id, name, driver, config)
VALUES ('00000000-0000-0000-0000-0000000e0001', '00000000-0000-0000-0000-0000000c0000', 'Local', 'local', '{}');
INSERT INTO envrt.environment_leases (company_id, environment_id, heartbeat_run_id, status, provider, metadata, released_at)
SELECT '00000000-0000-0000-0000-0000000c0000', '00000000-0000-0000-0000-0000000e0001',
    lpad(to_hex($runs_per_client + n % greatest($ended / 10, 1)), 32, '0')::uuid, CASE WHEN n <= $active THEN 'active' ELSE 'released' END, 'local',
    '{"driver": "local"}', CASE WHEN n > $active THEN now() END
FROM generate_series(1, $ended + $active) n;
VACUUM ANALYZE;
CHECKPOINT;
END
}

measure_size()
{
	local round

	fill bench_empty 0 0
	fill bench_full "$size_rows" 10000
	: >"$bench/empty"
	: >"$bench/full"
	for round in $(seq "$rounds"); do
		PGDATABASE=bench_empty turn "$bench/local-envrt.sql" 1 off >>"$bench/empty"
		PGDATABASE=bench_full turn "$bench/local-envrt.sql" 1 off >>"$bench/full"
	done
	paste "$bench/empty" "$bench/full" | awk '{ print $1 / $2 }' >"$bench/ratios"
	printf '\nacquire + release of a local lease, pairs a second, by what is in the table\n\n'
	printf '%12s %22s %7s\n' empty "$size_rows ended" cost
	printf '%12.0f %22.0f %7.2f\n' "$(median "$bench/empty")" "$(median "$bench/full")" "$(median "$bench/ratios")"
}

fixture_start
server_start "max_connections = 50" "shared_buffers = 256MB" "max_wal_size = 4GB" \
	"autovacuum = off" "envrt.runtime_api_candidates = '$ENVRT_TEST_API'"

# Runs have ids that a script can compute from a number.
sql <<END
CREATE EXTENSION envrt;
INSERT INTO envrt.companies (id, name) VALUES ('00000000-0000-0000-0000-0000000c0000', 'Bench');
INSERT INTO envrt.agents (id, company_id, name) VALUES ('00000000-0000-0000-0000-0000000a0000', '00000000-0000-0000-0000-0000000c0000', 'Bench');
INSERT INTO envrt.heartbeat_runs (id, company_id, agent_id, status)
SELECT lpad(to_hex(n), 32, '0')::uuid, '00000000-0000-0000-0000-0000000c0000', '00000000-0000-0000-0000-0000000a0000', 'running'
FROM generate_series(0, $clients_max * $runs_per_client - 1) n;
INSERT INTO envrt.environments (id, company_id, name, driver, config) VALUES
('00000000-0000-0000-0000-0000000e0001', '00000000-0000-0000-0000-0000000c0000', 'Local', 'local', '{}'),
('00000000-0000-0000-0000-0000000e0002', '00000000-0000-0000-0000-0000000c0000', 'Fake', 'sandbox', '{"provider": "fake", "image": "ubuntu:24.04", "reuseLease": false}');
-- A table that has a past, so that plans are those of a table that is in use.
INSERT INTO envrt.environment_leases (company_id, environment_id, heartbeat_run_id, status, provider, released_at)
SELECT company_id, '00000000-0000-0000-0000-0000000e0001', id, 'released', 'local', now() FROM envrt.heartbeat_runs;
VACUUM ANALYZE;
CHECKPOINT;
END

pick_run="\\set i :i + 1
\\set n :client_id * $runs_per_client + :i % $runs_per_client"
run="lpad(to_hex(:n::bigint), 32, '0')::uuid"
company="'00000000-0000-0000-0000-0000000c0000'::uuid"

write_scripts()
{
	local driver=$1 environment=$2 columns=$3 values=$4

	cat >"$bench/$driver-envrt.sql" <<END
$pick_run
SELECT * FROM envrt_acquire_lease($company, '$environment'::uuid, $run);
SELECT * FROM envrt_release_leases($run);
END
	cat >"$bench/$driver-bare.sql" <<END
$pick_run
INSERT INTO envrt.environment_leases (company_id, environment_id, heartbeat_run_id, status, lease_policy, $columns) VALUES ($company, '$environment'::uuid, $run, 'active', 'ephemeral', $values) RETURNING *;
UPDATE envrt.environment_leases SET status = 'released', released_at = now(), last_used_at = now(), updated_at = now() WHERE heartbeat_run_id = $run AND status = 'active' RETURNING *;
END
}

write_scripts local 00000000-0000-0000-0000-0000000e0001 \
	"provider, metadata" \
	"'local', '{\"driver\": \"local\", \"executionWorkspaceMode\": null}'"
write_scripts fake 00000000-0000-0000-0000-0000000e0002 \
	"provider, provider_lease_id, metadata" \
	"'fake', 'sandbox://fake/' || $run || '/' || gen_random_uuid(), '{\"driver\": \"sandbox\", \"executionWorkspaceMode\": null, \"provider\": \"fake\", \"image\": \"ubuntu:24.04\", \"reuseLease\": false}'"

# One turn; prints transactions (an acquire and its release) per second.
turn()
{
	local script=$1 clients=$2 commit=$3

	PGOPTIONS="-c synchronous_commit=$commit" pgbench -n -M prepared -D i=0 -f "$script" -T "$seconds" \
		-c "$clients" -j "$((clients < 2 ? 1 : 2))" >"$bench/output" 2>&1 || {
		cat "$bench/output" >&2
		die "pgbench failed."
	}
	sed -n 's/^tps = \([0-9.]*\).*/\1/p' "$bench/output"
}

printf '\nacquire + release, pairs a second (pgbench -M prepared, medians of %d turns of %d s)\n\n' "$rounds" "$seconds"
printf '%-7s %-8s %-19s %10s %10s %7s\n' driver clients synchronous_commit envrt "bare SQL" ratio
for driver in local fake; do
	for clients in 1 8; do
		for commit in off on; do
			: >"$bench/envrt"
			: >"$bench/bare"
			for round in $(seq "$rounds"); do
				turn "$bench/$driver-envrt.sql" "$clients" "$commit" >>"$bench/envrt"
				turn "$bench/$driver-bare.sql" "$clients" "$commit" >>"$bench/bare"
			done
			envrt=$(median "$bench/envrt")
			bare=$(median "$bench/bare")
			paste "$bench/envrt" "$bench/bare" | awk '{ print $1 / $2 }' >"$bench/ratios"
			printf '%-7s %-8s %-19s %10.0f %10.0f %7.2f\n' "$driver" "$clients" "$commit" "$envrt" "$bare" \
				"$(median "$bench/ratios")"
		done
	done
done

measure_size

# ---------------------------------------------------------------------------------------------
# ssh: a company that has not been there has no session to share, so its first acquire is cold
# ---------------------------------------------------------------------------------------------

workspace=$ENVRT_WORK/home/workspace

sql <<'SQL'
CREATE TABLE ssh_times (what text, us double precision);
CREATE PROCEDURE bench_ssh(cold integer, warm integer, config jsonb) LANGUAGE plpgsql AS $$
DECLARE
    company uuid;
    agent uuid;
    run uuid;
    environment uuid;
    started timestamptz;
BEGIN
    FOR i IN 1 .. cold LOOP
        INSERT INTO envrt.companies (name) VALUES ('Bench') RETURNING id INTO company;
        INSERT INTO envrt.agents (company_id, name) VALUES (company, 'Bench') RETURNING id INTO agent;
        INSERT INTO envrt.heartbeat_runs (company_id, agent_id, status) VALUES (company, agent, 'running') RETURNING id INTO run;
        SELECT id INTO environment FROM envrt_create_environment(company, 'ssh', 'ssh', config);
        COMMIT;
        FOR j IN 0 .. CASE WHEN i = cold THEN warm ELSE 0 END LOOP
            started := clock_timestamp();
            PERFORM envrt_acquire_lease(company, environment, run);
            COMMIT;
            INSERT INTO ssh_times VALUES (CASE WHEN j = 0 THEN 'cold' ELSE 'warm' END,
                extract(epoch FROM clock_timestamp() - started) * 1000000);
            PERFORM envrt_release_leases(run);
            COMMIT;
        END LOOP;
    END LOOP;
END
$$;
SQL

ssh_turns()
{
	local command=$1 round

	: >"$bench/ssh-bare"
	sql -c 'TRUNCATE ssh_times'
	for round in $(seq "$rounds"); do
		sql -v cold="$ssh_rounds" -v warm="$ssh_rounds" >/dev/null <<'END'
\set key `cat "$ENVRT_TEST_SSH_DIR/user_ed25519"`
\set known_hosts `cat "$ENVRT_TEST_SSH_DIR/known_hosts"`
\set port `printf %s "$ENVRT_TEST_SSH_PORT"`
\set username `printf %s "$ENVRT_TEST_SSH_USER"`
\set workspace `printf %s "$ENVRT_WORK/home/workspace"`
CALL bench_ssh(:cold, :warm, jsonb_build_object('host', '127.0.0.1', 'port', :port, 'username', :'username',
    'remoteWorkspacePath', :'workspace', 'privateKey', :'key', 'knownHosts', :'known_hosts'));
END
		build/ssh_baseline 127.0.0.1 "$ENVRT_TEST_SSH_PORT" "$ENVRT_TEST_SSH_USER" \
			"$ENVRT_TEST_SSH_DIR/user_ed25519" "$ENVRT_TEST_SSH_DIR/known_hosts" "$ssh_rounds" \
			"$ssh_rounds" "$command" >>"$bench/ssh-bare"
	done
}

print_ssh()
{
	local what=$1 kind envrt bare

	for kind in cold warm; do
		sql -c "SELECT us / 1000 FROM ssh_times WHERE what = '$kind'" >"$bench/envrt"
		awk -v kind="$kind" '$1 == kind { print $2 / 1000 }' "$bench/ssh-bare" >"$bench/bare"
		envrt=$(median "$bench/envrt")
		bare=$(median "$bench/bare")
		printf '%-7s %-27s %10.1f %10.1f %7s\n' "$kind" "$what" "$envrt" "$bare" "$(ratio "$envrt" "$bare")"
	done
}

printf '\nssh acquire, milliseconds (medians of %d; libssh runs the same command)\n\n' "$((rounds * ssh_rounds))"
printf '%-7s %-27s %10s %10s %7s\n' session "remote command" envrt libssh ratio
ssh_turns "mkdir -p '$workspace' && cd '$workspace' && pwd && curl -fsS -m 5 '$ENVRT_TEST_API/api/health' >/dev/null"
print_ssh "path and API check"
sql -c "ALTER SYSTEM SET envrt.runtime_api_candidates = ''" -c "SELECT pg_reload_conf()" >/dev/null
until [ -z "$(sql -c 'SHOW envrt.runtime_api_candidates')" ]; do
	sleep 0.05
done
ssh_turns "mkdir -p '$workspace' && cd '$workspace' && pwd"
print_ssh "path"
measure_commands
measure_transfers
echo

server_stop
fixture_stop
