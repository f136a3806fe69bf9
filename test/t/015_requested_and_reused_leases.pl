# Requested leases, and provider leases that are used again: whoever waits gets its turn, whoever can't
# be served holds up nobody, and what nobody can use any more goes.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use Test::More;
use Time::HiRes qw(time);
use EnvrtFixture qw(slurp);
use EnvrtTest;
use EnvrtProvider;
use EnvrtSession;

my $node = new_cluster('requests', conf => EnvrtProvider::conf() . "fsync = off\nmax_connections = 60\nenvrt.cleanup_attempts = 2\n");
my $provider = EnvrtProvider->new;
my $company = make_company($node);
my $agent = make_agent($node, $company);
my $journal = $provider->make_environment($node, $company);
my $local = make_environment($node, $company, 'local', {});

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

sub new_run
{
	return make_run($node, $company, agent => $agent);
}

sub reusable
{
	return $provider->make_environment($node, $company, reuseLease => JSON::PP::true, @_);
}

sub acquire_sql
{
	my ($environment, $run, $more) = @_;

	return "SELECT id FROM envrt_acquire_lease('$company', '$environment', '$run'" . ($more ? ", $more" : '') . ')';
}

sub request
{
	my ($environment, $run, $more) = @_;

	return sql("SELECT envrt_request_lease('$company', '$environment', '$run'" . ($more ? ", $more" : '') . ')');
}

sub await_state
{
	return (sql_state($node, "SELECT status FROM envrt_await_lease('$_[0]', '20 s')"))[0];
}

sub settles
{
	my ($what, %options) = @_;

	return is_deeply([ $provider->settled($node, cleaned => 1, %options) ], [], "$what: nothing is leaked, lost or held twice");
}

sub scheduler
{
	return wait_until('a scheduler', sub { sql("SELECT pid FROM envrt.stat_schedulers WHERE state = 'running'") });
}

# What is idle there goes with the environment.
sub remove
{
	my ($environment, $what) = @_;

	sql("DELETE FROM envrt.environments WHERE id = '$environment'");
	return ok(wait_until('the sandboxes to go', sub { !$provider->sandboxes }), "$what: what is idle goes with the environment");
}

# What a process has used, in clock ticks.
sub ticks
{
	my ($pid) = @_;
	my ($rest) = slurp("/proc/$pid/stat") =~ /\) (.*)/s;
	my @fields = split ' ', $rest;

	return $fields[11] + $fields[12];
}

#######################################################################
# A crowd that waits for one held thing, and others
#######################################################################
{
	my $environment = reusable();
	my $holder = new_run();
	my @runs = split /\n/, sql("INSERT INTO envrt.heartbeat_runs (company_id, agent_id, status) SELECT '$company', '$agent', 'running' FROM generate_series(1, 300) RETURNING id");
	my $run = new_run();

	sql(acquire_sql($environment, $holder));
	sql("SELECT count(envrt_request_lease('$company', '$environment', r.id)) FROM unnest('{" . join(',', @runs) . "}'::uuid[]) AS r(id)");
	is(await_state(request($_, $run)), '00000', 'beside 300 requests that wait another one is served') for $local, $journal;
	my $scheduler = scheduler();
	# Whatever the crowd has set in motion has come to rest when nothing is used for a second.
	wait_until('the scheduler to be at rest', sub { my $first = ticks($scheduler); sleep 1; my $second = ticks($scheduler); $second == $first });
	is(sql("SELECT count(*) FROM envrt.lease_requests WHERE state = 'queued'"), '300', 'they wait, and nobody works at it');

	# Each in its turn, as its predecessor ends.
	sql("SELECT envrt_release_leases('$holder')");
	for my $turn (1 .. 20)
	{
		wait_until_sql($node, "SELECT count(*) = 1 FROM envrt.environment_leases WHERE environment_id = '$environment' AND status = 'active'", "the lease of turn $turn");
		sql("SELECT envrt_release_leases(heartbeat_run_id) FROM envrt.environment_leases WHERE environment_id = '$environment' AND status = 'active'");
	}
	is(sql("SELECT count(DISTINCT heartbeat_run_id) FROM envrt.environment_leases WHERE environment_id = '$environment' AND heartbeat_run_id <> '$holder' AND status <> 'active'"), '20', 'one after the other gets it');
	is(sql("SELECT count(DISTINCT provider_lease_id) FROM envrt.environment_leases WHERE environment_id = '$environment'"), '1', 'the very same');
	sql("UPDATE envrt.heartbeat_runs SET status = 'cancelled' WHERE status = 'running'");
	wait_until_sql($node, "SELECT count(*) = 0 FROM envrt.lease_requests WHERE state = 'queued'", 'requests of runs that are over to end', 60);
	pass('requests of runs that are over end');
	sql('DELETE FROM envrt.lease_requests');
	settles('a crowd of requests');
	remove($environment, 'a crowd of requests');
}

# Sessions that wait: each in its turn, those that give up or roll back are passed over
{
	my $environment = reusable();
	my $holder = new_run();
	my @runs = map { new_run() } 1 .. 6;

	sql(acquire_sql($environment, $holder));
	my @sessions = map { EnvrtSession->new($node) } @runs;
	for my $i (0 .. $#runs)
	{
		$sessions[$i]->run('BEGIN');
		$sessions[$i]->start("SET LOCAL envrt.reuse_wait_timeout = '60s'; " . acquire_sql($environment, $runs[$i]));
		wait_until_sql($node, 'SELECT count(*) = ' . ($i + 1) . " FROM pg_stat_activity WHERE wait_event_type = 'Extension' AND query LIKE '%envrt_acquire_lease%'", 'a session to wait');
	}
	# Each way of not waiting any more, at once
	my $start = time;
	sql('SELECT pg_cancel_backend(' . $sessions[0]->backend . ')');
	is($sessions[0]->finish->{state}, '57014', 'who waits can be cancelled');
	sql('SELECT pg_terminate_backend(' . $sessions[1]->backend . ')');
	is($sessions[1]->finish->{state}, 'lost', 'and terminated');
	cmp_ok(time - $start, '<', 5, 'at once');
	sql("SELECT envrt_release_leases('$holder')");
	is($sessions[2]->finish->{state}, '00000', 'the first that still waits gets it');
	is($sessions[2]->run('ROLLBACK')->{state}, '00000', 'and takes it back');
	for my $i (3 .. 5)
	{
		is($sessions[$i]->finish->{state}, '00000', 'the next one gets it');
		$sessions[$i]->run('COMMIT');
		sql("SELECT envrt_release_leases('$runs[$i]')");
	}
	is(sql("SELECT count(*) FROM envrt.environment_leases WHERE environment_id = '$environment'"), '4', 'those that have committed have had it');
	$_->lose for @sessions;
	settles('waiting sessions');
	remove($environment, 'waiting sessions');
}

# One provider that is full up, with many environments
{
	my $hung = EnvrtProvider->new;
	my $run = new_run();
	my @environments = map { $hung->make_environment($node, $company, provider => 'journal-blind') } 1 .. 20;
	my $lease = sql(acquire_sql($journal, $run));

	for my $environment (@environments)
	{
		sql("SELECT count(envrt_acquire_lease('$company', '$environment', '$run')) FROM generate_series(1, 25)");
	}
	$hung->set_knob('release-stall');
	$hung->set_knob('destroy-stall');
	sql("SELECT envrt_release_lease(id) FROM envrt.environment_leases WHERE heartbeat_run_id = '$run' AND provider = 'journal-blind'");
	wait_until_sql($node, "SELECT count(*) > 30 FROM envrt.stat_cleanup WHERE attempts > 0", 'calls that hang');
	sql("SELECT envrt_release_lease('$lease')");
	is(sql("SELECT envrt_await_cleanup('$lease', '10 s')"), 'success', 'beside 500 cleanups of a provider that hangs another provider\'s goes through');
	$lease = request($journal, $run);
	is(await_state($lease), '00000', 'and a request');
	sql("SELECT envrt_release_lease('$lease')");
	$hung->clear_knobs;
	# Its worker forgets the calls that hang when it is gone.
	kill 'KILL', EnvrtProvider::worker_pids($node);
	wait_until_sql($node, "SELECT count(*) = 0 FROM envrt.environment_leases WHERE cleanup_status = 'pending'", 'all to be cleaned up', 120);
	is(scalar $hung->sandboxes, 0, 'in the end all are gone');
	settles('a provider that hangs');
}

#######################################################################
# Requests: what comes between
#######################################################################
for my $case (
	[ 'the provider fails', sub { $provider->set_knob('acquire-fail', 1) }, '38000' ],
	[ 'its worker dies before it has made one', sub { $provider->set_knob('acquire-die-before', 1) } ],
	[ 'its worker dies when it has made one', sub { $provider->set_knob('acquire-die-after', 1) } ],
	[ 'the scheduler is terminated', sub { $provider->set_knob('acquire-delay', 2) }, '00000', sub { sql('SELECT pg_terminate_backend(' . scheduler() . ')') } ],
	[ 'the driver host is killed', sub { $provider->set_knob('acquire-delay', 2) }, '00000', sub { kill 'KILL', EnvrtProvider::driver_host_pid($node) } ],
	[ 'the server is shut down', sub { $provider->set_knob('acquire-delay', 2) }, '00000', sub { $node->restart } ],
	[ 'the server crashes', sub { $provider->set_knob('acquire-late', 2) }, '00000', sub { $node->stop('immediate'); $node->start } ],
	[ 'its run ends', sub { $provider->set_knob('acquire-delay', 2) }, '55000', sub { sql("UPDATE envrt.heartbeat_runs SET status = 'cancelled' WHERE id = '$_[0]{run}'") } ],
	[ 'its run is deleted', sub { $provider->set_knob('acquire-delay', 2) }, '42704', sub { sql("DELETE FROM envrt.heartbeat_runs WHERE id = '$_[0]{run}'") } ],
	[ 'its environment is archived', sub { $provider->set_knob('acquire-delay', 2) }, '55000', sub { sql("UPDATE envrt.environments SET status = 'archived' WHERE id = '$_[0]{environment}'") } ],
	[ 'its environment is deleted', sub { $provider->set_knob('acquire-delay', 2) }, '42704', sub { sql("DELETE FROM envrt.environments WHERE id = '$_[0]{environment}'") } ])
{
	my ($what, $before, $state, $meanwhile) = @$case;
	my %it = (environment => $provider->make_environment($node, $company), run => new_run());

	$before->();
	my $calls = $provider->count('create');
	my $lease = request($it{environment}, $it{run});
	if ($meanwhile)
	{
		wait_until('the provider to be at it', sub { sql("SELECT count(*) FROM envrt.stat_calls WHERE method = 'environmentAcquireLease'") > 0 });
		$meanwhile->(\%it);
	}
	scheduler();
	# Whether a worker that died is asked again is the driver host's business; it comes to an end.
	my $got = await_state($lease);
	if (defined $state) { is($got, $state, "a request while $what: $state") }
	else { like($got, qr/^(00000|38000|08006)$/, "a request while $what: it comes to an end ($got)") }
	is(sql("SELECT count(*) FROM envrt.environment_leases WHERE id = '$lease' AND status = 'active'"), $got eq '00000' ? '1' : '0', "$what: the lease is " . ($got eq '00000' ? 'there' : 'not there'));
	is(await_state($lease), $got, "$what: who asks again hears the same") if $got ne '42704';
	$provider->clear_knobs;
	settles($what);
	sql("SELECT envrt_release_leases('$it{run}')");
	settles("$what, afterwards");
	is(scalar $provider->sandboxes, 0, "$what: nothing is left in the end");
}

# Waiting for a request, and for a cleanup, ends at once when it is to
{
	my $run = new_run();
	my $environment = reusable();
	my $held = sql(acquire_sql($environment, $run));
	my $lease = request($environment, new_run());

	is((sql_state($node, "SELECT envrt_await_lease('$lease', '100 ms')"))[0], '57014', 'a request is waited for until the timeout');
	for my $statement ("SELECT envrt_await_lease('$lease', '1 hour')", "SELECT envrt_await_cleanup('$held', '1 hour')")
	{
		if ($statement =~ /cleanup/)
		{
			$provider->set_knob('release-delay', 3);
			sql("SELECT envrt_release_leases('$run')");
		}
		my $start = time;
		is((sql_state($node, "SET statement_timeout = '200 ms'; $statement"))[0], '57014', "statement_timeout ends $statement" =~ s/\(.*//r);
		my $session = EnvrtSession->new($node)->start($statement);
		wait_until_sql($node, 'SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = \'Extension\' AND pid = ' . $session->backend);
		sql('SELECT pg_terminate_backend(' . $session->backend . ')');
		is($session->finish->{state}, 'lost', 'and so does pg_terminate_backend');
		cmp_ok(time - $start, '<', 2.5, 'at once');
	}
	$provider->clear_knobs;
	is(await_state($lease), '00000', 'the request is served when it can be');
	sql("SELECT envrt_release_lease('$lease')");
	settles('waiting');
	remove($environment, 'waiting');
}

#######################################################################
# Provider leases that are used again
#######################################################################

# One for each execution workspace, and none without
{
	my $environment = $provider->make_environment($node, $company, leasePolicy => 'reuse_by_execution_workspace');
	my ($first, $second) = map { sql("INSERT INTO envrt.execution_workspaces (company_id, project_id, mode, strategy_type, name) VALUES ('$company', '$company', 'shared', 'none', 'w') RETURNING id") } 1 .. 2;
	my $run = new_run();
	my $of = sub {
		my ($workspace) = @_;
		my $id = sql("SELECT provider_lease_id FROM envrt_acquire_lease('$company', '$environment', '$run'" . ($workspace ? ", execution_workspace_id => '$workspace'" : '') . ')');
		return $id;
	};
	my @ids = map { $of->($_) } $first, $second, undef;

	is(scalar(keys %{ { map { $_ => 1 } @ids } }), 3, 'each workspace has its own, at the same time');
	is((sql_state($node, "SELECT envrt_acquire_lease('$company', '$environment', '$run', execution_workspace_id => '$first')"))[0], '55P03', 'and it is held');
	is(sql("SELECT lease_policy FROM envrt.environment_leases WHERE provider_lease_id = '$ids[2]'"), 'ephemeral', 'without a workspace it is ephemeral');
	sql("SELECT envrt_release_leases('$run')");
	settles('workspaces');
	ok(!$provider->has($ids[2]), 'the ephemeral one is gone');
	is($of->($second), $ids[1], 'a workspace gets its own again');
	is($of->($first), $ids[0], 'and the other one the other');
	sql("SELECT envrt_release_leases('$run')");
	settles('workspaces again');
	remove($environment, 'workspaces');
}

# What is idle and of no use to anybody goes
for my $case (
	[ 'another config', "UPDATE envrt.environments SET config = config || '{\"size\": 2}' WHERE id = '%s'" ],
	[ 'archived', "UPDATE envrt.environments SET status = 'archived' WHERE id = '%s'" ],
	[ 'deleted', "DELETE FROM envrt.environments WHERE id = '%s'" ])
{
	my ($what, $change) = @$case;
	my $environment = reusable();
	my $run = new_run();

	sql(acquire_sql($environment, $run));
	sql("SELECT envrt_release_leases('$run')");
	wait_until_sql($node, "SELECT count(*) = 1 FROM envrt.stat_cleanup WHERE state = 'idle'");
	sql("UPDATE envrt.environments SET metadata = '{}', description = 'x' WHERE id = '$environment'");
	my $lease = sql(acquire_sql($environment, $run));
	is($provider->count('resume', sql("SELECT provider_lease_id FROM envrt.environment_leases WHERE id = '$lease'")), 1, "$what: what does not matter to it does not end it");
	# While it is held nothing happens to it; afterwards it is not kept.
	sql(sprintf $change, $environment);
	is(scalar $provider->sandboxes, 1, "$what: what is held is held") if $what ne 'deleted';
	sql("SELECT envrt_release_leases('$run')");
	wait_until("$what: the sandbox to go", sub { !$provider->sandboxes });
	settles($what);
}

# Idle for too long, by our setting or by the provider's word
{
	my $environment = reusable();
	my $run = new_run();

	$node->append_conf('postgresql.conf', "envrt.reuse_idle_timeout = '1s'");
	$node->reload;
	wait_until_sql($node, "SELECT setting = '1' FROM pg_settings WHERE name = 'envrt.reuse_idle_timeout'");
	sql(acquire_sql($environment, $run));
	sql("SELECT envrt_release_leases('$run')");
	wait_until('one that is idle for a second to go', sub { !$provider->sandboxes }, 10);
	pass('one that is idle for envrt.reuse_idle_timeout goes');
	$node->append_conf('postgresql.conf', 'envrt.reuse_idle_timeout = 0');
	$node->reload;
	wait_until_sql($node, "SELECT setting = '0' FROM pg_settings WHERE name = 'envrt.reuse_idle_timeout'");
	$provider->set_knob('expires-in', 2);
	my $lease = sql(acquire_sql($environment, $run, "expires_in => '1 hour'"));
	$provider->clear_knobs;
	sql("SELECT envrt_release_leases('$run')");
	is(sql("SELECT envrt_await_cleanup('$lease')"), 'success', 'one that the provider ends is idle');
	wait_until('it to go at its time', sub { !$provider->sandboxes }, 10);
	pass('and goes when the provider says');
	# A lease that is active then expires by it.
	$provider->set_knob('expires-in', 2);
	$lease = sql(acquire_sql($environment, $run, "expires_in => '1 hour'"));
	$provider->clear_knobs;
	wait_until_sql($node, "SELECT status = 'expired' FROM envrt.environment_leases WHERE id = '$lease'", 'the lease to expire by the provider\'s word', 10);
	pass('and so does an active lease');
	settles('what the provider ends');
	wait_until('it to go', sub { !$provider->sandboxes }, 10);
}

# One that can't be resumed is tried again and kept; one that can't be released is kept as well
{
	my $environment = reusable();
	my $run = new_run();
	my $first = sql(acquire_sql($environment, $run));
	my $created = $provider->count('create');

	sql("SELECT envrt_release_leases('$run')");
	settles('one to be resumed');
	$provider->set_knob('resume-fail', 1);
	my $lease = sql(acquire_sql($environment, $run));
	is($provider->count('resume', $first), 1, 'one that can not be resumed once is resumed');
	sql("SELECT envrt_release_leases('$run')");
	settles('one to be resumed by a request');
	$provider->set_knob('resume-fail', 1);
	$lease = request($environment, $run);
	is(await_state($lease), '00000', 'the same for a request');
	is($provider->count('resume', $first), 2, 'in the end it is resumed');
	sql("SELECT envrt_release_leases('$run')");
	settles('one whose provider fails for long');
	sql("ALTER SYSTEM SET envrt.reuse_retry = '500 ms'");
	sql('SELECT pg_reload_conf()');
	$provider->set_knob('resume-fail', 'always');
	is((sql_state($node, acquire_sql($environment, $run)))[0], '38000', 'an acquire that can not resume fails');
	$lease = request($environment, $run);
	is(await_state($lease), '38000', 'and so does a request');
	$provider->clear_knobs;
	settles('one that could not be resumed');
	is(join(' ', map { $_->[0] } $provider->sandboxes), $first, 'and what was idle is kept');
	sql('ALTER SYSTEM RESET envrt.reuse_retry');
	sql('SELECT pg_reload_conf()');
	$lease = sql(acquire_sql($environment, $run));
	is($provider->count('create'), $created, 'until it can be resumed');
	$provider->set_knob('release-fail', 'always');
	sql("SELECT envrt_release_leases('$run')");
	is(sql("SELECT envrt_await_cleanup('$lease', '20 s')"), 'success', 'one that can not be released has an end');
	$provider->clear_knobs;
	sql(acquire_sql($environment, $run));
	is($provider->count('create'), $created, 'and is kept all the same');
	sql("SELECT envrt_release_leases('$run')");
	settles('one that could not be released');
	sql("UPDATE envrt.environments SET status = 'archived' WHERE id = '$environment'");
	wait_until('it to go with its environment', sub { !$provider->sandboxes }, 20);
}

# A retained one ends by expiry too
{
	my $environment = $provider->make_environment($node, $company, leasePolicy => 'retain_on_failure');
	my ($run, $other) = (new_run(), new_run());
	my $lease = sql(acquire_sql($environment, $run, "expires_in => '5 s'"));
	my $destroyed = sql(acquire_sql($environment, $other));

	sql("SELECT envrt_release_leases('$_', 'failed', 'broken')") for $run, $other;
	is(sql("SELECT string_agg(status, ',') FROM envrt.environment_leases WHERE id IN ('$lease', '$destroyed')"), 'retained,retained', 'leases that failed are retained');
	is(sql("SELECT count(*) FROM envrt_release_leases('$run')"), '0', 'they are not active');
	wait_until_sql($node, "SELECT status = 'expired' FROM envrt.environment_leases WHERE id = '$lease'", 'the retained lease to expire');
	is(sql("SELECT envrt_await_cleanup('$lease')"), 'success', 'a retained lease expires and is cleaned up');
	sql("SELECT envrt_destroy_lease('$destroyed')");
	is(sql("SELECT envrt_await_cleanup('$destroyed')"), 'success', 'or is destroyed');
	settles('retained leases');
}

#######################################################################
# What only the ledger knows at last
#######################################################################

# The provider can't do anything without the secret: here that is where its directory is.
{
	my $secret = sql("SELECT envrt_create_secret('$company', 'directory', " . literal($provider->{directory}) . ')');
	my $environment = make_environment($node, $company, 'sandbox',
		{ provider => 'journal', directory => { type => 'secret_ref', secretId => $secret, version => 'latest' } });
	my $run = new_run();
	my $lease = sql(acquire_sql($environment, $run));

	is(scalar $provider->sandboxes, 1, 'a secret of the config reaches the provider');
	sql("DELETE FROM envrt.environment_leases; DELETE FROM envrt.environments WHERE id = '$environment'; DELETE FROM envrt.company_secrets");
	wait_until('the sandbox to go', sub { !$provider->sandboxes });
	is($provider->count('destroy', $lease), 1, 'also when secret, environment and lease are gone');
	wait_until_sql($node, 'SELECT count(*) = 0 FROM envrt.provider_leases');
}

# A row that is deleted where triggers don't fire, as replication does it
{
	my $lease = sql(acquire_sql($journal, new_run()));

	sql("SET session_replication_role = replica; DELETE FROM envrt.environment_leases WHERE id = '$lease'");
	wait_until('the sandbox to go', sub { !$provider->sandboxes });
	settles('deleted by replication');
}
done_testing();
