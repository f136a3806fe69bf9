# A million leases that have ended: no query of ours reads a table from end to end, in a backend or in
# the scheduler, and a lease still expires at its time.  And an idle server is idle.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use Test::More;
use Time::HiRes qw(sleep);
use EnvrtTest;
use EnvrtProvider;
use PostgreSQL::Test::Utils qw(slurp_file);

my $ended = $ENV{ENVRT_SCALE_LEASES} // 1_000_000;
my $active = 10_000;
my $provider = EnvrtProvider->new;
my $node = new_cluster('scale', conf => EnvrtProvider::conf() . <<'END');
fsync = off
autovacuum = off
max_wal_size = '4 GB'
shared_preload_libraries = 'envrt, auto_explain'
auto_explain.log_nested_statements = on
END
my $company = make_company($node);
my $agent = make_agent($node, $company);
my $local = make_environment($node, $company, 'local', {});
my $fake = make_fake_environment($node, $company, reuseLease => JSON::PP::true);
my $journal = $provider->make_environment($node, $company);
my $reused = $provider->make_environment($node, $company, reuseLease => JSON::PP::true);

# Foreign keys are not what is tested; our own triggers fire all the same.
$node->safe_psql('postgres', <<"END");
SET session_replication_role = replica;
INSERT INTO envrt.heartbeat_runs (id, company_id, agent_id, status)
SELECT ('10000000-0000-4000-8000-' || lpad(i::text, 12, '0'))::uuid, '$company', '$agent', CASE WHEN i <= $active THEN 'running' ELSE 'succeeded' END
FROM generate_series(1, $ended / 10) i;
INSERT INTO envrt.environment_leases (company_id, environment_id, heartbeat_run_id, status, provider, provider_lease_id, lease_policy, metadata, released_at, expires_at)
SELECT '$company', (ARRAY['$local', '$fake', '$journal']::uuid[])[1 + i % 3], ('10000000-0000-4000-8000-' || lpad((1 + i % ($ended / 10))::text, 12, '0'))::uuid,
    (ARRAY['released', 'expired', 'failed'])[1 + i % 3], (ARRAY['local', 'fake', 'journal'])[1 + i % 3], 'old://' || i, 'ephemeral',
    '{"driver": "local"}', now(), now() - interval '1 day'
FROM generate_series(1, $ended) i;
INSERT INTO envrt.environment_leases (company_id, environment_id, heartbeat_run_id, status, provider, lease_policy, metadata, expires_at)
SELECT '$company', '$local', ('10000000-0000-4000-8000-' || lpad(i::text, 12, '0'))::uuid, 'active', 'local', 'ephemeral', '{"driver": "local"}', now() + interval '1 day'
FROM generate_series(1, $active) i;
RESET session_replication_role;
VACUUM ANALYZE envrt.environment_leases, envrt.heartbeat_runs;
END
is($node->safe_psql('postgres', 'SELECT count(*) FROM envrt.environment_leases'), $ended + $active, 'the leases are there');

# From here on every plan is in the log, those of a scheduler that looks at everything as well.
$node->append_conf('postgresql.conf', "auto_explain.log_min_duration = 0\n");
my $from = -s $node->logfile;
$node->restart;
wait_until_sql($node, "SELECT count(*) = 1 FROM envrt.stat_schedulers WHERE state = 'running' /* test */");

for my $environment ($local, $fake, $journal, $reused)
{
	my $run = make_run($node, $company, agent => $agent);
	my $lease = acquire($node, $company, $environment, $run)->{id};

	$node->safe_psql('postgres', "SELECT envrt_renew_lease('$lease', '1 hour')");
	$node->safe_psql('postgres', "BEGIN; SELECT envrt_acquire_lease('$company', '$environment', '$run'); ROLLBACK") if $environment eq $local || $environment eq $journal;
	release($node, $run);
	is($node->safe_psql('postgres', "SELECT coalesce(envrt_await_cleanup('$lease'), 'null')"), $environment eq $local ? 'null' : 'success', 'acquired, renewed, released');

	$lease = $node->safe_psql('postgres', "SELECT envrt_request_lease('$company', '$environment', '$run')");
	is($node->safe_psql('postgres', "SELECT status FROM envrt_await_lease('$lease')"), 'active', 'requested');
	$node->safe_psql('postgres', "UPDATE envrt.heartbeat_runs SET status = 'failed' WHERE id = '$run'");
	is($node->safe_psql('postgres', "SELECT status FROM envrt.environment_leases WHERE id = '$lease' /* test */"), 'failed', 'ended by its run');
	$node->safe_psql('postgres', "SELECT envrt_await_cleanup('$lease')");
	$node->safe_psql('postgres', "DELETE FROM envrt.heartbeat_runs WHERE id = '$run'");
}
{
	my $run = make_run($node, $company, agent => $agent);
	my $lease = acquire($node, $company, $reused, $run)->{id};
	$node->safe_psql('postgres', "SELECT envrt_destroy_lease('$lease')");
	is($node->safe_psql('postgres', "SELECT envrt_await_cleanup('$lease')"), 'success', 'destroyed');
	$lease = $node->safe_psql('postgres', "SELECT id FROM envrt_acquire_lease('$company', '$journal', '$run', expires_in => '1 s')");
	wait_until_sql($node, "SELECT status = 'expired' FROM envrt.environment_leases WHERE id = '$lease' /* test */");
	is($node->safe_psql('postgres', "SELECT released_at - expires_at < interval '1 s' FROM envrt.environment_leases WHERE id = '$lease' /* test */"), 't', 'expired at its time');
}
is_deeply([ $provider->settled($node) ], [], 'nothing is left over');

# An entry is a line with a time and what follows it, indented.
my $log = substr slurp_file($node->logfile), $from;
my @entries = grep { /plan:\n/ } split /^(?=\d{4}-\d\d-\d\d )/m, $log;
my @ours = grep { !m{/\* test \*/|envrt\.stat_|count\(\*\) FROM} } @entries;
cmp_ok(scalar @ours, '>', 100, 'plans are in the log: ' . @ours);
ok((grep { /UPDATE envrt\.provider_leases/ } @ours) > 0, 'those of the scheduler too');
my @scans = grep { /Seq Scan on (environment_leases|heartbeat_runs|provider_leases|lease_requests)\b/ } @ours;
is(scalar @scans, 0, 'none reads a table from end to end') or diag $scans[0];
my @whole = grep { /Index (?:Only )?Scan using \S+ on (environment_leases|heartbeat_runs)(?! \w+\n\s+Index Cond)[^\n]*\n(?!\s+Index Cond)/ && !/_active_idx|_expiry_idx/ } @ours;
is(scalar @whole, 0, 'nor a whole index') or diag $whole[0];

# A run that has had many leases: what its acquire and release read of them is what is active.  The same for those
# that have just ended, whose rows are dead and not vacuumed away.
{
	my $run = make_run($node, $company, agent => $agent);
	my $many = 20_000;

	$node->safe_psql('postgres', <<"END");
SET session_replication_role = replica;
INSERT INTO envrt.environment_leases (company_id, environment_id, heartbeat_run_id, status, provider, lease_policy, metadata, released_at)
SELECT '$company', '$local', '$run', 'released', 'local', 'ephemeral', '{"driver": "local"}', now() FROM generate_series(1, $many) i;
RESET session_replication_role;
CREATE PROCEDURE pairs(n integer) LANGUAGE plpgsql AS \$\$
BEGIN
	FOR i IN 1..n LOOP
		PERFORM envrt_acquire_lease('$company', '$local', '$run');
		PERFORM envrt_release_leases('$run');
		COMMIT;
	END LOOP;
END \$\$;
CREATE FUNCTION entries_read(OUT entries bigint) LANGUAGE sql AS
'SELECT sum(pg_stat_get_xact_tuples_returned(indexrelid)) + pg_stat_get_xact_tuples_returned(''envrt.environment_leases''::regclass)
FROM pg_index WHERE indrelid = ''envrt.environment_leases''::regclass';
CREATE ROLE seeing LOGIN;
GRANT USAGE ON SCHEMA envrt TO seeing;
GRANT SELECT ON envrt.companies, envrt.environments, envrt.heartbeat_runs, envrt.environment_leases TO seeing;
GRANT EXECUTE ON FUNCTION envrt_acquire_lease, envrt_release_leases TO seeing;
END
	# How many entries of indexes and rows a transaction reads that acquires and ends by this statement.
	my $reads = sub {
		my ($end, @as) = @_;

		return $node->safe_psql('postgres', "BEGIN; DO \$\$ BEGIN PERFORM envrt_acquire_lease('$company', '$local', '$run'); $end; END \$\$;
			SELECT entries_read(); COMMIT", @as);
	};
	my $release = "PERFORM envrt_release_leases('$run')";
	cmp_ok($reads->($release), '<', 20, "in a run with $many ended leases, a company with a million: acquire and release");
	$node->safe_psql('postgres', 'CALL pairs(500)');
	cmp_ok($reads->($release), '<', 20, '... after as many as 500 that have just ended');
	$node->safe_psql('postgres', 'ALTER TABLE envrt.environment_leases ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON envrt.environment_leases TO seeing USING (true)');
	cmp_ok($reads->($release, extra_params => [ '-U', 'seeing' ]), '<', 20, '... for who sees by policies');
	$node->safe_psql('postgres', 'ALTER TABLE envrt.environment_leases DISABLE ROW LEVEL SECURITY');
	cmp_ok($reads->("UPDATE envrt.heartbeat_runs SET status = 'succeeded' WHERE id = '$run'"), '<', 20, '... and when the run ends');
}

# A reusable environment that has had many leases: one more reads no more of the indexes than in one that has had one.
{
	my $run = make_run($node, $company, agent => $agent);
	my $blocks = sub {
		my ($environment) = @_;
		my $acquire = "SELECT envrt_acquire_lease('$company', '$environment', '$run')";
		# At first the session reads catalogs.
		my $plan = $node->safe_psql('postgres', "BEGIN; $acquire; SELECT envrt_release_leases('$run');
			EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) $acquire; SELECT envrt_release_leases('$run'); COMMIT");
		my ($hit) = $plan =~ /"Shared Hit Blocks": (\d+)/;
		my ($read) = $plan =~ /"Shared Read Blocks": (\d+)/;

		return $hit + $read;
	};
	my $few = make_fake_environment($node, $company, reuseLease => JSON::PP::true);
	my $before = $blocks->($few);

	$node->safe_psql('postgres', "INSERT INTO envrt.environment_leases SELECT n.* FROM generate_series(1, 50000) i,
		(SELECT l FROM envrt.environment_leases l WHERE environment_id = '$few' LIMIT 1) o, jsonb_populate_record(o.l, jsonb_build_object('id', md5(i::text)::uuid)) n");
	my $after = $blocks->($few);
	note "$before, $after";
	cmp_ok($after, '<', $before + 50, 'in a reusable environment with 50000 ended leases an acquire reads no more blocks');
}

# An idle server, with one lease that ends tomorrow.
$node->append_conf('postgresql.conf', "auto_explain.log_min_duration = -1\n");
$node->restart;
wait_until_sql($node, "SELECT count(*) = 1 FROM envrt.stat_schedulers WHERE state = 'running'");
wait_until_sql($node, "SELECT state = 'running' FROM envrt.stat_driver_host");

sub wake_ups
{
	my $sum = 0;

	for my $pid (split /\n/, $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type IN ('envrt scheduler', 'envrt launcher')"))
	{
		$sum += $1 if slurp_file("/proc/$pid/status") =~ /^voluntary_ctxt_switches:\s+(\d+)/m;
	}
	return $sum;
}
# What the start has to do is done when nothing has happened for a second.
my $before;
wait_until('the start to be over', sub { my $first = wake_ups(); sleep 1; $before = wake_ups(); $before == $first });
sleep 60;
cmp_ok(wake_ups() - $before, '<=', 1, 'idle for a minute: at most one wake-up of scheduler and launcher');

done_testing();
