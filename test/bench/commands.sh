# What commands cost, and leases of real sandboxes; sourced by bench.sh, whose server and sshd it uses.
#
#   measure_commands    envrt_execute of `true`: in a bubblewrap lease next to plain bwrap with the same
#                       arguments; over a warm ssh session next to a new channel by libssh alone.
#                       Acquire of a bubblewrap lease, with the ledger's commit in it, next to a commit.

command_turns=${BENCH_TURNS:-10}
command_rounds=${BENCH_COMMANDS:-20}

commands_setup()
{
	local directory=$1

	sql -c "ALTER SYSTEM SET envrt.sandbox_directory = '$directory'" \
		-c "ALTER SYSTEM SET envrt.sandbox_on_data_filesystem = on" -c "SELECT pg_reload_conf()" >/dev/null
	until [ -n "$(sql -c 'SHOW envrt.sandbox_directory')" ]; do
		sleep 0.05
	done
	sql >/dev/null <<'SQL'
\set key `cat "$ENVRT_TEST_SSH_DIR/user_ed25519"`
\set known_hosts `cat "$ENVRT_TEST_SSH_DIR/known_hosts"`
\set port `printf %s "$ENVRT_TEST_SSH_PORT"`
\set username `printf %s "$ENVRT_TEST_SSH_USER"`
\set workspace `printf %s "$ENVRT_WORK/home/workspace"`
CREATE TABLE command_leases (kind text, company uuid, environment uuid, run uuid, lease uuid);
CREATE TABLE command_times (what text, us double precision);
CREATE TABLE commits (n integer);
CREATE PROCEDURE command_setup(kind text, driver text, config jsonb) LANGUAGE plpgsql AS $$
DECLARE
    company uuid;
    agent uuid;
    run uuid;
    environment uuid;
BEGIN
    INSERT INTO envrt.companies (name) VALUES ('Bench') RETURNING id INTO company;
    INSERT INTO envrt.agents (company_id, name) VALUES (company, 'Bench') RETURNING id INTO agent;
    INSERT INTO envrt.heartbeat_runs (company_id, agent_id, status) VALUES (company, agent, 'running') RETURNING id INTO run;
    SELECT id INTO environment FROM envrt_create_environment(company, kind, driver, config);
    COMMIT;
    INSERT INTO command_leases VALUES (kind, company, environment, run, (SELECT id FROM envrt_acquire_lease(company, environment, run)));
    COMMIT;
END
$$;
-- The first one counts for nothing.
CREATE PROCEDURE command_times(lease_kind text, n integer) LANGUAGE plpgsql AS $$
DECLARE
    l uuid := (SELECT lease FROM command_leases WHERE kind = lease_kind);
    started timestamptz;
BEGIN
    FOR i IN 0 .. n LOOP
        started := clock_timestamp();
        PERFORM envrt_execute(l, 'true');
        IF i > 0 THEN
            INSERT INTO command_times VALUES (lease_kind, extract(epoch FROM clock_timestamp() - started) * 1000000);
        END IF;
        COMMIT;
    END LOOP;
END
$$;
CREATE PROCEDURE acquire_times(n integer) LANGUAGE plpgsql AS $$
DECLARE
    c record;
    run_id uuid;
    started timestamptz;
BEGIN
    SELECT * INTO c FROM command_leases WHERE kind = 'bubblewrap';
    FOR i IN 1 .. n LOOP
        INSERT INTO envrt.heartbeat_runs (company_id, agent_id, status)
        SELECT company_id, agent_id, 'running' FROM envrt.heartbeat_runs WHERE id = c.run RETURNING id INTO run_id;
        COMMIT;
        started := clock_timestamp();
        PERFORM envrt_acquire_lease(c.company, c.environment, run_id);
        INSERT INTO command_times VALUES ('acquire', extract(epoch FROM clock_timestamp() - started) * 1000000);
        PERFORM envrt_release_leases(run_id);
        COMMIT;
        started := clock_timestamp();
        INSERT INTO commits VALUES (i);
        COMMIT;
        INSERT INTO command_times VALUES ('commit', extract(epoch FROM clock_timestamp() - started) * 1000000);
        COMMIT;
    END LOOP;
END
$$;
CALL command_setup('ssh', 'ssh', jsonb_build_object('host', '127.0.0.1', 'port', :port, 'username', :'username',
    'remoteWorkspacePath', :'workspace', 'privateKey', :'key', 'knownHosts', :'known_hosts'));
CALL command_setup('bubblewrap', 'sandbox', '{"provider": "bubblewrap"}');
SQL
}

# One turn: envrt's times of a kind, then the other's, into files of their own and the ratio of their medians.
turn_ratio()
{
	local name=$1

	ratio "$(median "$bench/turn-envrt")" "$(median "$bench/turn-bare")" >>"$bench/$name-ratios"
	echo >>"$bench/$name-ratios"
	cat "$bench/turn-envrt" >>"$bench/$name-envrt"
	cat "$bench/turn-bare" >>"$bench/$name-bare"
}

times_of()
{
	sql -c "SELECT us / 1000 FROM command_times WHERE what = '$1'"
}

# A line of the table.
print_command()
{
	local name=$1 what=$2 other=$3

	printf '%-31s %8.2f %8.2f %6.2f   %s\n' "$what" "$(median "$bench/$name-envrt")" "$(median "$bench/$name-bare")" \
		"$(median "$bench/$name-ratios")" "$other"
}

measure_commands()
{
	local directory=$ENVRT_WORK/sandboxes round lease

	mkdir -p -m 700 "$directory"
	commands_setup "$directory"
	lease=$(sql -c "SELECT lease FROM command_leases WHERE kind = 'bubblewrap'")
	rm -f "$bench"/{sandbox,ssh,acquire}-*
	for round in $(seq "$command_turns"); do
		sql -c 'TRUNCATE command_times' -c "CALL command_times('bubblewrap', $command_rounds)"
		times_of bubblewrap >"$bench/turn-envrt"
		build/sandbox_baseline "$directory" "$lease" "$command_rounds" >"$bench/plain"
		awk '$1 == "plain" { print $2 / 1000 }' "$bench/plain" >"$bench/turn-bare"
		turn_ratio sandbox
		sql -c "CALL command_times('ssh', $command_rounds)"
		times_of ssh >"$bench/turn-envrt"
		build/ssh_baseline 127.0.0.1 "$ENVRT_TEST_SSH_PORT" "$ENVRT_TEST_SSH_USER" \
			"$ENVRT_TEST_SSH_DIR/user_ed25519" "$ENVRT_TEST_SSH_DIR/known_hosts" 0 "$command_rounds" \
			/usr/bin/true | awk '{ print $2 / 1000 }' >"$bench/turn-bare"
		turn_ratio ssh
		sql -c "CALL acquire_times($command_rounds)"
		times_of acquire >"$bench/turn-envrt"
		times_of commit >"$bench/turn-bare"
		turn_ratio acquire
	done
	printf '\nthe arguments of bwrap:\n\n'
	sed -n '/^plain/q; s/^bwrap //p' "$bench/plain" | tr '\n' ' ' | fold -s -w 120
	printf '\n\nenvrt_execute of true, and an acquire, milliseconds (medians of %d turns of %d)\n\n' "$command_turns" "$command_rounds"
	printf '%-31s %8s %8s %6s\n' "" envrt bare ratio
	print_command sandbox "true in a bubblewrap lease" "plain bwrap with the same arguments"
	print_command ssh "true over a warm ssh session" "libssh, a new channel"
	print_command acquire "acquire of a bubblewrap lease" "a commit"
}
