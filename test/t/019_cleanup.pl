# Cleanup: one provider that hangs holds up nobody and holds nothing open, retries end, what is to be
# cleaned up may have lost its environment, its secrets and its lease.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use Test::More;
use EnvrtTest;
use EnvrtProvider;
use PostgreSQL::Test::Utils qw(slurp_file);

my $provider = EnvrtProvider->new;
my $node = new_cluster('cleanup', conf => EnvrtProvider::conf() . "fsync = off\nenvrt.cleanup_attempts = 3\n");
my $company = make_company($node);
my $environment = $provider->make_environment($node, $company);

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

# A release that takes 30 s, and a thousand others
{
	my $slow_run = make_run($node, $company);
	my $slow = acquire($node, $company, $environment, $slow_run)->{id};

	$provider->set_knob('release-delay', "30 $slow");
	release($node, $slow_run);
	wait_until_sql($node, "SELECT count(*) = 1 FROM envrt.stat_calls WHERE method = 'environmentReleaseLease'", 'the slow release to be under way');

	my $run = make_run($node, $company);
	my $begun = time;
	sql("DO \$\$ BEGIN FOR i IN 1 .. 1000 LOOP PERFORM envrt_acquire_lease('$company', '$environment', '$run'); COMMIT; END LOOP; END \$\$");
	is(sql("SELECT count(*) FROM envrt_release_leases('$run')"), '1000', 'a thousand are released');
	wait_until_sql($node, "SELECT count(*) = 1000 FROM envrt.environment_leases WHERE heartbeat_run_id = '$run' AND cleanup_status = 'success'",
		'a thousand cleanups', 60);
	is(sql("SELECT state || ' ' || attempts FROM envrt.stat_cleanup WHERE holder_id = '$slow'"), 'cleaning 1', 'while the slow one is still under way')
	  or diag 'after ' . (time - $begun) . ' s';
	is(sql("SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'envrt%' AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)"), '0',
		'and no process of ours holds a snapshot or a transaction');
	is(sql("SELECT envrt_await_cleanup('$slow', '60 s')"), 'success', 'the slow one ends as well');
	is(scalar(grep { $_->[0] eq $slow } $provider->sandboxes), 0, 'and is gone');
	$provider->clear_knobs;
}

# Retries, and their end
{
	my $run = make_run($node, $company);
	my $lease = acquire($node, $company, $environment, $run)->{id};

	$provider->set_knob('release-fail', 'always');
	$provider->set_knob('destroy-fail', 'always');
	release($node, $run);
	is(sql("SELECT envrt_await_cleanup('$lease', '0.2 s')"), 'pending', 'waiting ends at its time');
	is(sql("SELECT envrt_await_cleanup('$lease', '30 s')"), 'failed', 'three attempts, and it has failed');
	like(sql("SELECT concat_ws(' ', state, attempts, next_attempt_at, last_error) FROM envrt.stat_cleanup WHERE holder_id = '$lease'"),
		qr/^cleaning 3 The knob/, 'the ledger says why, and that nothing more comes by itself');
	like(slurp_file($node->logfile), qr/cleanup of provider lease "\Q$lease\E" has failed after 3 attempts/, 'so does the log');
	$provider->clear_knobs;
	sql("SELECT envrt_retry_cleanup('$lease')");
	is(sql("SELECT envrt_await_cleanup('$lease')"), 'success', 'tried again by a person');
}

# What is behind a lease goes, however the lease went
my @ways = (
	[ 'deleted', sub { sql("DELETE FROM envrt.environment_leases WHERE id = '$_[0]{lease}'") } ],
	[ 'renamed', sub { sql("UPDATE envrt.environment_leases SET id = gen_random_uuid() WHERE id = '$_[0]{lease}'") } ],
	[ 'released by hand', sub { sql("UPDATE envrt.environment_leases SET status = 'released' WHERE id = '$_[0]{lease}'") } ],
	[ 'its environment changed and archived', sub { sql("UPDATE envrt.environments SET config = '{\"provider\": \"other\"}', status = 'archived' WHERE id = '$_[0]{environment}'; SELECT FROM envrt_release_leases('$_[0]{run}')") } ],
	[ 'its environment deleted', sub { sql("DELETE FROM envrt.environments WHERE id = '$_[0]{environment}'") } ],
	[ 'its run deleted', sub { sql("DELETE FROM envrt.heartbeat_runs WHERE id = '$_[0]{run}'") } ],
	[ 'its company deleted', sub { sql("DELETE FROM envrt.heartbeat_runs WHERE company_id = '$_[0]{company}'; DELETE FROM envrt.agents WHERE company_id = '$_[0]{company}'; DELETE FROM envrt.companies WHERE id = '$_[0]{company}'") } ],
	[ 'truncated', sub { sql('TRUNCATE envrt.environment_leases') } ],
	[ 'acquired and deleted by one transaction', undef ]);
for my $way (@ways)
{
	my ($name, $do) = @$way;
	my %it = (company => make_company($node));

	$it{environment} = $provider->make_environment($node, $it{company});
	$it{run} = make_run($node, $it{company});
	if ($do)
	{
		$it{lease} = acquire($node, $it{company}, $it{environment}, $it{run})->{id};
		is(scalar(grep { $_->[0] eq $it{lease} } $provider->sandboxes), 1, "a lease, $name: its sandbox is there");
		$do->(\%it);
	}
	else
	{
		sql("BEGIN; SELECT envrt_acquire_lease('$it{company}', '$it{environment}', '$it{run}'); DELETE FROM envrt.heartbeat_runs WHERE id = '$it{run}'; COMMIT");
	}
	wait_until_sql($node, 'SELECT count(*) = 0 FROM envrt.provider_leases', "the ledger to be empty: $name", 15);
	is(scalar($provider->sandboxes), 0, "$name: nothing is left");
}

# With the secret it was made with, though that is gone; and no text of a provider tells it
{
	my $secret = sql("SELECT envrt_create_secret('$company', 'token', 'very-secret-token')");
	my $with = $provider->make_environment($node, $company, token => { type => 'secret_ref', secretId => $secret, version => 'latest' });
	my $run = make_run($node, $company);
	my $lease = acquire($node, $company, $with, $run)->{id};

	is(sql("SELECT count(*) FROM envrt.provider_leases WHERE secrets IS NOT NULL AND config::text NOT LIKE '%very-secret%'"), '1', 'the ledger has it encrypted');
	sql("DELETE FROM envrt.company_secrets WHERE id = '$secret'");
	$node->restart;
	wait_until_sql($node, "SELECT count(*) = 1 FROM envrt.stat_schedulers WHERE state = 'running'");
	release($node, $run);
	is(sql("SELECT envrt_await_cleanup('$lease')"), 'success', 'cleaned up without the secret');
}

# Waiting for what is held; policies
{
	my $reused = $provider->make_environment($node, $company, reuseLease => JSON::PP::true);
	my ($first, $second) = map { make_run($node, $company) } 1 .. 2;
	my $id = acquire($node, $company, $reused, $first)->{provider_lease_id};

	is((sql_state($node, "SELECT envrt_acquire_lease('$company', '$reused', '$second')"))[0], '55P03', 'held: it fails at once');
	is((sql_state($node, "SET envrt.reuse_wait_timeout = '200 ms'; SELECT envrt_acquire_lease('$company', '$reused', '$second')"))[0], '55P03', 'or after its time');
	my $waiting = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', "SET envrt.reuse_wait_timeout = '30 s'",
			'-c', "SELECT provider_lease_id, metadata -> 'resumedLease' FROM envrt_acquire_lease('$company', '$reused', '$second')" ], '>', \my $out, '2>', \my $err);
	wait_until_sql($node, "SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'SELECT provider_lease_id%' AND wait_event_type = 'Extension'");
	release($node, $first);
	IPC::Run::finish($waiting);
	is($out, "$id|true\n", 'or gets the same, resumed, when it is free') or diag $err;
	release($node, $second);

	my $retained = $provider->make_environment($node, $company, leasePolicy => 'retain_on_failure');
	my $run = make_run($node, $company);
	my $lease = acquire($node, $company, $retained, $run)->{id};
	sql("UPDATE envrt.heartbeat_runs SET status = 'failed', error = 'it broke' WHERE id = '$run'");
	is(sql("SELECT concat_ws('|', status, failure_reason, released_at, cleanup_status) FROM envrt.environment_leases WHERE id = '$lease'"), 'retained|it broke', 'a failed run retains its sandbox');
	is(sql("SELECT state FROM envrt.stat_cleanup WHERE holder_id = '$lease'"), 'held', 'which is held');
	is(sql("SELECT status FROM envrt_release_lease('$lease')"), 'released', 'until it is released');
	is(sql("SELECT envrt_await_cleanup('$lease')"), 'success', 'and cleaned up');

	$provider->set_knob('expires-in', 3600);
	$run = make_run($node, $company);
	is(sql("SELECT expires_at < now() + interval '2 hours' FROM envrt_acquire_lease('$company', '$environment', '$run', expires_in => '1 day')"), 't', 'the provider\'s own end is earlier');
	is(sql("SELECT expires_at < now() + interval '2 minutes' FROM envrt_acquire_lease('$company', '$environment', '$run', expires_in => '1 minute')"), 't', 'or ours');
	$provider->clear_knobs;
	release($node, $run);
}

# No transaction that has acquired can be prepared
is((sql_state($node, "BEGIN; SELECT envrt_acquire_lease('$company', '$environment', '" . make_run($node, $company) . "'); PREPARE TRANSACTION 'x'"))[0], '0A000', 'PREPARE TRANSACTION is refused');
sql("UPDATE envrt.environments SET status = 'archived'");
wait_until_sql($node, 'SELECT count(*) = 0 FROM envrt.provider_leases', 'what is idle to go with its environments');
is_deeply([ $provider->settled($node) ], [], 'nothing is leaked, lost or held twice');

done_testing();
