# What users do to the shared tables while others work with them: locks, DDL, DROP, and code of their
# owner's.  Nobody hangs, the scheduler goes on with all else, and no one gets rights by way of it.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use Test::More;
use Time::HiRes qw(time);
use EnvrtTest;
use EnvrtProvider;
use EnvrtSession;
use PostgreSQL::Test::Utils qw(slurp_file);

my $node = new_cluster('locks', conf => EnvrtProvider::conf() . "max_connections = 60\nrestart_after_crash = on\n");
my $provider = EnvrtProvider->new;
my $company = make_company($node);
my $journal = $provider->make_environment($node, $company);
my $local = make_environment($node, $company, 'local', {});
my $run = make_run($node, $company);

sub scheduler
{
	my ($database) = @_;

	$database //= 'postgres';
	return wait_until("a scheduler of $database",
		sub { $node->safe_psql('postgres', "SELECT pid FROM envrt.stat_schedulers WHERE database = '$database' AND state = 'running'") });
}

sub acquire_sql
{
	my ($environment, %options) = @_;
	my ($of_company, $of_run) = ($options{company} // $company, $options{run} // $run);
	my $expires_in = $options{expires_in} ? ", expires_in => '$options{expires_in}'" : '';

	return "SELECT id FROM envrt_acquire_lease('$of_company', '$environment', '$of_run'$expires_in)";
}

# A session that has begun a transaction with something that locks.
sub locker
{
	my ($sql) = @_;
	my $session = EnvrtSession->new($node);
	my $result = $session->run("BEGIN; $sql");

	is($result->{state}, '00000', $sql) or diag $result->{message};
	return $session;
}

# An acquire that gives up on locks after 300 ms; it must not come to the statement's own limit.
sub careful_acquire
{
	return (sql_state($node, "SET lock_timeout = '300ms'; SET statement_timeout = '20s'; " . acquire_sql(@_)))[0];
}

sub await_lease
{
	my ($lease, $condition, $what, $timeout) = @_;

	return eval { wait_until_sql($node, "SELECT $condition FROM envrt.environment_leases WHERE id = '$lease'", $what, $timeout // 10) };
}

my $scheduler = scheduler();

# It waits for no lock at any time, and has no snapshot while it waits, when somebody else has what it wants.
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION watch_scheduler() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    seen text;
BEGIN
    FOR i IN 1 .. 60 LOOP
        SELECT concat_ws(' ', wait_event_type, wait_event, query) INTO seen FROM pg_stat_activity
        WHERE backend_type = 'envrt scheduler' AND datname = 'postgres' AND (wait_event_type = 'Lock' OR backend_xmin IS NOT NULL AND wait_event_type = 'Extension');
        EXIT WHEN FOUND;
        PERFORM pg_sleep(0.025), pg_stat_clear_snapshot();
    END LOOP;
    RETURN seen;
END $$;
SQL

sub scheduler_waits_for_nobody
{
	my ($what) = @_;

	return is($node->safe_psql('postgres', 'SELECT watch_scheduler()'), '', "$what: the scheduler waits for no lock and holds no snapshot");
}

#######################################################################
# Each shared table, locked as a whole and changed by DDL
#######################################################################

# What an acquire needs; the others may be locked for as long as anybody likes.
my %needed = map { $_ => 1 } qw(companies heartbeat_runs environments environment_leases execution_workspaces);
my @tables = (sort(keys %needed), qw(agents company_secrets company_secret_versions plugins activity_log));

for my $table (@tables)
{
	my $of_leases = $table eq 'environment_leases';

	for my $lock (
		"LOCK TABLE envrt.$table IN ACCESS EXCLUSIVE MODE", "ALTER TABLE envrt.$table ADD COLUMN of_the_user integer DEFAULT 1",
		# It can be read, and not be written.
		$of_leases ? "CREATE INDEX of_the_user ON envrt.$table (issue_id)" : ())
	{
		my $what = $lock =~ /^(\w+)/ ? "$1 $table" : die;
		my ($released, $deleted, $dead) = map { $node->safe_psql('postgres', acquire_sql($journal)) } 1 .. 3;
		my $expiring = $node->safe_psql('postgres', acquire_sql($local, expires_in => '600 ms'));

		# A cleanup is under way when the lock comes, and one is needed while it is there.
		$provider->set_knob('release-delay', 0.5, $released);
		$node->safe_psql('postgres', "SELECT envrt_release_lease('$released')");
		# It may have ended already, on a machine that is slow to look.
		wait_until_sql($node, "SELECT coalesce((SELECT attempts >= 1 FROM envrt.stat_cleanup WHERE lease_id = '$released'), true)");
		my $session = locker($lock);

		my $other = $of_leases ? undef : EnvrtSession->new($node)->start("SELECT envrt_release_lease('$deleted')");
		is(careful_acquire($local), $needed{$table} ? '55P03' : '00000', "$what: a local acquire " . ($needed{$table} ? 'fails' : 'goes through'));
		is(careful_acquire($journal), $needed{$table} || $table eq 'plugins' ? '55P03' : '00000', "$what: one that calls a plugin's provider too");
		# The scheduler does not wait for it in its place.
		my $requested = $table eq 'plugins' ? $node->safe_psql('postgres', "SELECT envrt_request_lease('$company', '$journal', '$run')") : undef;
		scheduler_waits_for_nobody($what) if $requested;
		ok(wait_until("$what: the provider to be told", sub { $provider->count('destroy', $released) == 1 }), "$what: a cleanup goes on");
		if ($of_leases)
		{
			scheduler_waits_for_nobody($what);
		}
		else
		{
			is($other->finish->{state}, '00000', "$what: a release goes through");
			ok(await_lease($released, "cleanup_status = 'success'", 'the cleanup to be written down'), "$what: and is written down");
			ok(await_lease($deleted, "cleanup_status = 'success'", 'the cleanup'), "$what: another one is begun and ends");
			ok(await_lease($expiring, "status = 'expired'", 'the expiry'), "$what: a lease expires");
			cmp_ok($node->safe_psql('postgres', "SELECT extract(epoch FROM released_at - expires_at) FROM envrt.environment_leases WHERE id = '$expiring'"), '<', 1, "$what: on time");
		}
		is($session->run($lock =~ /^LOCK/ ? 'ROLLBACK' : 'COMMIT')->{state}, '00000', "$what: ends");

		# What had to wait
		ok(await_lease($released, "cleanup_status = 'success'", 'the cleanup'), "$what: the cleanup is written down") if $of_leases;
		ok(await_lease($expiring, "status = 'expired'", 'the expiry'), "$what: the lease expires then") if $of_leases;
		is(careful_acquire($local), '00000', "$what: afterwards all work");
		is($node->safe_psql('postgres', "SELECT status FROM envrt_await_lease('$requested', '10 s')"), 'active', "$what: what was requested is acquired") if $requested;
		$node->safe_psql('postgres', "DELETE FROM envrt.environment_leases WHERE id = '$dead'");
		$node->safe_psql('postgres', "SELECT envrt_release_leases('$run')");
		$provider->clear_knobs;
		is_deeply([ $provider->settled($node, cleaned => 1) ], [], "$what: and all is settled");
		is(scheduler(), $scheduler, "$what: the scheduler went on throughout");
	}
}

#######################################################################
# Rows that are locked for long
#######################################################################
{
	my $other_company = make_company($node);
	my $other_local = make_environment($node, $other_company, 'local', {});
	my $other_journal = $provider->make_environment($node, $other_company);
	my %other = (company => $other_company, run => make_run($node, $other_company));

	for my $case (
		[ 'a company', "SELECT 1 FROM envrt.companies WHERE id = '$company' FOR UPDATE" ],
		[ 'a run', "SELECT 1 FROM envrt.heartbeat_runs WHERE id = '$run' FOR UPDATE" ],
		[ 'environments', "SELECT 1 FROM envrt.environments WHERE company_id = '$company' FOR UPDATE" ],
		[ 'leases', "SELECT 1 FROM envrt.environment_leases WHERE company_id = '$company' FOR UPDATE" ])
	{
		my ($what, $lock) = @$case;
		my ($released, $asked) = ($node->safe_psql('postgres', acquire_sql($journal)));
		my $expiring = $node->safe_psql('postgres', acquire_sql($local, expires_in => '4 s'));

		# Longer where the lock has to come before the end.
		$provider->set_knob('release-delay', $what eq 'leases' ? 4 : 0.5, $released);
		$node->safe_psql('postgres', "SELECT envrt_release_lease('$released')");
		# It may have ended already, on a machine that is slow to look.
		wait_until_sql($node, "SELECT coalesce((SELECT attempts >= 1 FROM envrt.stat_cleanup WHERE lease_id = '$released'), true)");
		my $session = locker($lock);

		is(careful_acquire($_), $what eq 'leases' ? '00000' : '55P03', "$what locked: acquires of that company") for $local, $journal;
		is(careful_acquire($_, %other), '00000', "$what locked: acquires of another company") for $other_local, $other_journal;
		my $other_expiring = $node->safe_psql('postgres', acquire_sql($other_local, %other, expires_in => '300 ms'));
		ok(await_lease($other_expiring, "status = 'expired'", 'the expiry'), "$what locked: a lease of another company expires");
		cmp_ok($node->safe_psql('postgres', "SELECT extract(epoch FROM released_at - expires_at) FROM envrt.environment_leases WHERE id = '$other_expiring'"), '<', 1, "$what locked: on time");
		my $requested = $node->safe_psql('postgres', "SELECT envrt_request_lease('$company', '$journal', '$run')");
		my $other_requested = $node->safe_psql('postgres', "SELECT envrt_request_lease('$other_company', '$other_journal', '$other{run}')");
		is($node->safe_psql('postgres', "SELECT status FROM envrt_await_lease('$other_requested', '10 s')"), 'active', "$what locked: a request of another company is served");
		ok(wait_until("$what: the provider to be told", sub { $provider->count('destroy', $released) == 1 }), "$what locked: a cleanup goes on");
		$node->safe_psql('postgres', "SELECT envrt_release_leases('$other{run}')");
		is($node->safe_psql('postgres', "SELECT envrt_await_cleanup('$other_requested', '10 s')"), 'success', "$what locked: another cleanup begins and ends");
		scheduler_waits_for_nobody("$what locked");
		if ($what eq 'leases')
		{
			wait_until_sql($node, "SELECT expires_at < clock_timestamp() - interval '500 ms' FROM envrt.environment_leases WHERE id = '$expiring'");
			is($node->safe_psql('postgres', "SELECT status, cleanup_status FROM envrt.environment_leases WHERE id IN ('$released', '$expiring') ORDER BY 1"),
				"active|\nreleased|pending", 'leases that are locked are left as they are');
		}
		is($session->run('COMMIT')->{state}, '00000', "$what: free again");
		ok(await_lease($expiring, "status = 'expired'", 'the expiry'), "$what: what is due expires");
		ok(await_lease($released, "cleanup_status = 'success'", 'the cleanup'), "$what: what is cleaned up is written down");
		is($node->safe_psql('postgres', "SELECT status FROM envrt_await_lease('$requested', '10 s')"), 'active', "$what: what was requested is acquired");
		$node->safe_psql('postgres', "SELECT envrt_release_leases('$run')");
		$provider->clear_knobs;
		is_deeply([ $provider->settled($node, cleaned => 1) ], [], "$what: all is settled");
		is(scheduler(), $scheduler, "$what: the scheduler went on throughout");
	}
}

#######################################################################
# Columns of another type, or gone: an error, and nothing worse
#######################################################################
{
	my $reset = $node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()');
	# What these databases hold when they are dropped stays.
	my $stays = EnvrtProvider->new;

	for my $case (
		[ 'heartbeat_runs', 'ALTER COLUMN status DROP DEFAULT, ALTER COLUMN status TYPE bigint USING 1234567' ],
		[ 'heartbeat_runs', 'ALTER COLUMN company_id TYPE bigint USING 1234567' ],
		[ 'heartbeat_runs', 'DROP COLUMN status CASCADE' ],
		[ 'environments', 'ALTER COLUMN config DROP DEFAULT, ALTER COLUMN config TYPE json' ],
		[ 'environments', 'ALTER COLUMN driver DROP DEFAULT, ALTER COLUMN driver TYPE bigint USING 1234567' ],
		[ 'environments', 'ALTER COLUMN name TYPE bigint USING 1234567' ],
		[ 'environments', 'DROP COLUMN status CASCADE' ],
		[ 'environment_leases', 'ALTER COLUMN id DROP DEFAULT, ALTER COLUMN id TYPE bigint USING 1234567' ],
		[ 'environment_leases', 'ALTER COLUMN metadata TYPE json' ],
		[ 'environment_leases', 'ALTER COLUMN expires_at TYPE bigint USING 1234567' ],
		[ 'environment_leases', 'ALTER COLUMN provider TYPE bigint USING 1234567' ],
		[ 'environment_leases', 'DROP COLUMN cleanup_status CASCADE' ],
		[ 'companies', 'ALTER COLUMN id DROP DEFAULT, ALTER COLUMN id TYPE bigint USING 1234567' ])
	{
		my ($table, $change) = @$case;
		my $what = "$table: $change";
		my $database = 'changed';

		$node->safe_psql('postgres', "CREATE DATABASE $database");
		$node->safe_psql($database, 'CREATE EXTENSION envrt');
		scheduler($database);
		$node->safe_psql($database, <<"SQL");
INSERT INTO envrt.companies (id, name) VALUES ('$company', 'c');
INSERT INTO envrt.agents (id, company_id, name) SELECT '$run', '$company', 'a';
INSERT INTO envrt.heartbeat_runs (id, company_id, agent_id, status) VALUES ('$run', '$company', '$run', 'running');
INSERT INTO envrt.environments (id, company_id, name, driver) VALUES ('$local', '$company', 'local', 'local');
INSERT INTO envrt.environments (id, company_id, name, driver, config) SELECT '$journal', '$company', 'journal', 'sandbox', '{"provider": "journal", "directory": "$stays->{directory}"}';
SQL
		$node->safe_psql($database, acquire_sql($journal));
		my $expiring = $node->safe_psql($database, acquire_sql($local, expires_in => '300 ms'));
		# Whatever is in the way: constraints, keys, triggers and indexes on it, policies that look at it.
		my ($status, undef, $err) = $node->psql($database, <<"SQL", on_error_stop => 1);
BEGIN;
DO \$\$
DECLARE
    c record;
BEGIN
    FOR c IN SELECT conrelid::regclass t, conname n FROM pg_constraint WHERE contype = 'f' AND 'envrt.$table'::regclass IN (conrelid, confrelid) LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', c.t, c.n);
    END LOOP;
    FOR c IN SELECT conname n FROM pg_constraint WHERE conrelid = 'envrt.$table'::regclass LOOP
        EXECUTE format('ALTER TABLE envrt.$table DROP CONSTRAINT %I CASCADE', c.n);
    END LOOP;
    FOR c IN SELECT indexrelid::regclass i FROM pg_index WHERE indrelid = 'envrt.$table'::regclass LOOP
        EXECUTE format('DROP INDEX %s', c.i);
    END LOOP;
    ALTER EXTENSION envrt DROP VIEW envrt.stat_cleanup;
    DROP VIEW envrt.stat_cleanup;
    FOR c IN SELECT tablename t, policyname n FROM pg_policies WHERE schemaname = 'envrt' LOOP
        EXECUTE format('DROP POLICY %I ON envrt.%I', c.n, c.t);
    END LOOP;
    FOR c IN SELECT tgname n FROM pg_trigger WHERE tgrelid = 'envrt.$table'::regclass AND NOT tgisinternal LOOP
        EXECUTE format('DROP TRIGGER %I ON envrt.$table', c.n);
    END LOOP;
END \$\$;
ALTER TABLE envrt.$table $change;
COMMIT;
SQL
		# Whoever may put triggers on it may use ours.
		$node->safe_psql($database, <<'SQL') if $table eq 'environment_leases';
CREATE TRIGGER expiry AFTER INSERT OR UPDATE ON envrt.environment_leases FOR EACH ROW EXECUTE FUNCTION envrt.on_lease_expiry();
CREATE TRIGGER change AFTER INSERT OR UPDATE OR DELETE ON envrt.environment_leases FOR EACH ROW EXECUTE FUNCTION envrt.on_lease_change();
SQL
		diag $err if $status != 0;
		is($status, 0, $what);
		for my $sql (acquire_sql($local), acquire_sql($journal), "SELECT envrt_release_leases('$run')", "SELECT envrt_renew_lease('$expiring', '1 ms')",
			"INSERT INTO envrt.environment_leases (company_id, environment_id, heartbeat_run_id, status, provider) SELECT '$company', '$local', '$run', 'active', 'x'",
			"UPDATE envrt.environment_leases SET status = 'released'", "UPDATE envrt.heartbeat_runs SET status = 'succeeded'", 'DELETE FROM envrt.heartbeat_runs',
			"UPDATE envrt.environments SET status = 'archived'", 'DELETE FROM envrt.environments', 'TRUNCATE envrt.environment_leases')
		{
			my ($state) = sql_state($node, "SET statement_timeout = '20s'; $sql", database => $database);
			# An outcome of the statement's own, not that the server is gone or hangs.
			like($state, qr/^(?!57)[0-9A-Z]{5}$/, "$what: $sql") or diag $state;
		}
		$node->safe_psql('postgres', "DROP DATABASE $database");
	}
	is($node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()'), $reset, 'the server is still the same');
	unlike(slurp_file($node->logfile), qr/was terminated by signal/, 'none of its processes has crashed');
	is(scheduler(), $scheduler, 'nor has the scheduler of another database ended');
}

#######################################################################
# DROP and copies while a cleanup is under way
#######################################################################
{
	$node->safe_psql('postgres', 'CREATE DATABASE doomed');
	$node->safe_psql('doomed', 'CREATE EXTENSION envrt');
	$node->safe_psql('doomed', <<"SQL");
INSERT INTO envrt.companies (id, name) VALUES ('$company', 'c');
INSERT INTO envrt.agents (id, company_id, name) SELECT '$run', '$company', 'a';
INSERT INTO envrt.heartbeat_runs (id, company_id, agent_id, status) VALUES ('$run', '$company', '$run', 'running');
INSERT INTO envrt.environments (id, company_id, name, driver, config) SELECT '$journal', '$company', 'journal', 'sandbox', '{"provider": "journal", "directory": "$provider->{directory}"}';
SQL
	my $busy = sub {
		my $lease = $node->safe_psql('doomed', acquire_sql($journal));

		$provider->set_knob('release-delay', 2, $lease);
		$node->safe_psql('doomed', "SELECT envrt_release_lease('$lease')");
		wait_until('the cleanup to be under way', sub { $node->safe_psql('doomed', "SELECT attempts = 1 FROM envrt.stat_cleanup WHERE lease_id = '$lease'") eq 't' });
		return $lease;
	};
	my $in_time = sub {
		my ($what, $database, $sql) = @_;
		my $start = time;
		my ($state, $err) = sql_state($node, $sql, database => $database);

		is($state, '00000', "$what while a cleanup is under way") or diag $err;
		cmp_ok(time - $start, '<', 10, "$what: soon");
		return;
	};

	my $lease = $busy->();
	$in_time->('DROP EXTENSION and ROLLBACK', 'doomed', 'BEGIN; DROP EXTENSION envrt; ROLLBACK');
	is($node->safe_psql('doomed', "SELECT envrt_await_cleanup('$lease', '10 s')"), 'success', 'and the cleanup ends well');
	is($node->safe_psql('doomed', "SELECT status FROM envrt_release_leases('$run')"), '', 'all works on');

	$lease = $busy->();
	$in_time->('CREATE DATABASE ... TEMPLATE', 'template1', 'CREATE DATABASE copy TEMPLATE doomed');
	scheduler('doomed');
	is($node->safe_psql('doomed', "SELECT envrt_await_cleanup('$lease', '10 s')"), 'success', 'and the cleanup ends well');
	is($provider->count('destroy', $lease), 1, 'once');
	$in_time->('DROP DATABASE', 'postgres', 'DROP DATABASE copy');

	$lease = $busy->();
	$in_time->('DROP EXTENSION', 'doomed', 'DROP EXTENSION envrt');
	wait_until('its scheduler to end', sub { $node->safe_psql('postgres', "SELECT count(*) FROM envrt.stat_schedulers WHERE database = 'doomed'") eq '0' });
	pass('and its scheduler ends');
	$node->safe_psql('doomed', 'CREATE EXTENSION envrt');
	scheduler('doomed');
	$in_time->('DROP DATABASE', 'postgres', 'DROP DATABASE doomed');
	is(scheduler(), $scheduler, 'the scheduler of another database goes on');
	$provider->clear_knobs;
	wait_until('nothing to be left', sub { !$provider->sandboxes });
}
done_testing();
