# Clients that do anything that can be done with leases, while processes and the server are killed.
# Afterwards nothing is leaked, lost, held twice or ended twice with an effect.
#
# ENVRT_CHAOS_SECONDS (120) is how long, ENVRT_CHAOS_PAUSE (2) the seconds between two kills,
# ENVRT_CHAOS_SEED what the random numbers are made from; the seed is printed.  It says what each client
# does to whatever it finds, and what is killed, not how these fall together.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use Test::More;
use Time::HiRes qw(sleep time);
use EnvrtTest;
use EnvrtFixture qw(spew slurp);
use EnvrtProvider;
use EnvrtSession;

my $seconds = $ENV{ENVRT_CHAOS_SECONDS} // 120;
my $seed = $ENV{ENVRT_CHAOS_SEED} // int rand 1e9;
my $clients = 8;
my $pause = $ENV{ENVRT_CHAOS_PAUSE} // 2;    # between two kills

diag "ENVRT_CHAOS_SEED=$seed, $seconds s";

my $provider = EnvrtProvider->new;
my $node = new_cluster('chaos', conf => EnvrtProvider::conf() . <<'CONF');
restart_after_crash = on
max_connections = 40
envrt.provider_timeout = '5s'
envrt.reuse_retry = '2s'
CONF
my $company = make_company($node);
my $agent = make_agent($node, $company);
my %environment = (
	ephemeral => $provider->make_environment($node, $company),
	# One whose names come again, and one that has its troubles with resuming, which are not to cost it its work
	named => $provider->make_environment($node, $company, leasePolicy => 'reuse_by_environment', named => JSON::PP::true),
	reused => $provider->make_environment($node, $company, leasePolicy => 'reuse_by_environment'),
	retained => $provider->make_environment($node, $company, leasePolicy => 'retain_on_failure'),
	keyed => $provider->make_environment($node, $company, provider => 'journal-keyed'));
my @environments = map { $environment{$_} } sort keys %environment;

# However a provider lease would come to be held twice, this is in its way.
$node->safe_psql('postgres',
	"CREATE UNIQUE INDEX held_once ON envrt.environment_leases (provider_lease_id) WHERE status IN ('active', 'retained')");

#######################################################################
# A client
#######################################################################

my $session;
my %done;        # "what state" => how often
my @wrong;       # what must not be seen
my $until;

sub pick
{
	return $_[ int rand @_ ];
}

sub chance
{
	return rand() < $_[0];
}

# What any statement may end with in all this; the rest is a finding.
my %expected = map { $_ => 1 } qw(00000 lost 55P03 55000 42704 57014 57P01 57P02 57P03 08006 08001 38000 25P02 3B001 40001 40P01);

sub run
{
	my ($what, $sql) = @_;
	my $result = $session->run($sql);

	$done{"$what $result->{state}"}++;
	push @wrong, "$what: $result->{state} $result->{message}" if !$expected{ $result->{state} };
	return $result;
}

# Whether the transaction goes on.
sub goes_on
{
	return !$session->is_lost;
}

# A session; none when the time is over before there is one.
sub reconnect
{
	while (time < $until)
	{
		$session = EnvrtSession->new($node);
		return 1 if !$session->is_lost;
		sleep 0.05;
	}
	return 0;
}

sub some_lease
{
	my ($where) = @_;
	my $result = run('look', "SELECT id FROM envrt.environment_leases WHERE $where ORDER BY random() LIMIT 1");

	return $result->{out};
}

sub some_run
{
	my $result = chance(0.6)
	  ? run('run', "INSERT INTO envrt.heartbeat_runs (company_id, agent_id, status, started_at) VALUES ('$company', '$agent', 'running', now()) RETURNING id")
	  : run('look', "SELECT id FROM envrt.heartbeat_runs WHERE status = 'running' ORDER BY random() LIMIT 1");

	return $result->{out};
}

sub acquire_sql
{
	my ($function) = @_;
	my $run = some_run() or return undef;
	my $expires = chance(0.3) ? ", expires_in => '" . int(100 + rand 4000) . " ms'" : '';
	my $environment = pick(@environments);
	my $column = $function =~ /request/ ? 'r' : 'id';

	return "SELECT $column FROM $function('$company', '$environment', '$run'$expires) r";
}

sub one_statement
{
	my ($alone) = @_;
	my $kind = pick(qw(acquire acquire acquire acquire request resume probe renew release release release_run release_run destroy
		end_run end_run delete_run retained check check delete_lease));
	my $sql;

	if ($kind eq 'acquire')
	{
		$sql = acquire_sql('envrt_acquire_lease');
	}
	elsif ($kind eq 'request')
	{
		$sql = acquire_sql('envrt_request_lease');
	}
	elsif ($kind eq 'probe')
	{
		$sql = "SELECT ok FROM envrt_probe('" . pick(@environments) . "')";
	}
	elsif ($kind =~ /^(resume|renew|release|destroy|release_run|end_run|delete_run|delete_lease)$/)
	{
		my $lease = some_lease("status = 'active'");
		return if $lease eq '';
		$sql = "SELECT envrt_resume_lease('$lease')" if $kind eq 'resume';
		$sql = "SELECT id FROM envrt_renew_lease('$lease', '" . int(50 + rand 5000) . " ms')" if $kind eq 'renew';
		$sql = "SELECT id FROM envrt_release_lease('$lease', '" . pick(qw(released failed expired)) . "')" if $kind eq 'release';
		$sql = "SELECT id FROM envrt_destroy_lease('$lease')" if $kind eq 'destroy';
		my $of = "(SELECT heartbeat_run_id FROM envrt.environment_leases WHERE id = '$lease')";
		$sql = "SELECT r.id FROM envrt.heartbeat_runs h, envrt_release_leases(h.id, '" . pick(qw(released failed)) . "') r WHERE h.id = $of" if $kind eq 'release_run';
		$sql = "UPDATE envrt.heartbeat_runs SET status = '" . pick(qw(succeeded failed cancelled timed_out)) . "' WHERE id = $of" if $kind eq 'end_run';
		$sql = "DELETE FROM envrt.heartbeat_runs WHERE id = $of" if $kind eq 'delete_run';
		$sql = "DELETE FROM envrt.environment_leases WHERE id = '$lease'" if $kind eq 'delete_lease' && chance(0.3);
	}
	elsif ($kind eq 'retained')
	{
		my $lease = some_lease("status = 'retained'");
		$sql = "SELECT id FROM envrt_release_lease('$lease')" if $lease ne '';
	}
	elsif ($kind eq 'check')
	{
		check($alone);
	}
	run($kind, $sql) if defined $sql && goes_on();
	return;
}

# A lease that is locked and active has its sandbox, whatever happens around it.
sub check
{
	my ($alone) = @_;

	run('begin', 'BEGIN') if $alone;
	my $result = run('check', "SELECT id, provider_lease_id FROM envrt.environment_leases WHERE status IN ('active', 'retained') ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED");
	my ($lease, $id) = split /\|/, $result->{out};

	if (defined $id && $id ne '')
	{
		push @wrong, "lease $lease is active, and there is no $id" if !$provider->has($id);
		$done{'check done'}++;
	}
	run('commit', 'COMMIT') if $alone && goes_on();
	return;
}

sub transaction
{
	if (chance(0.4))
	{
		# By themselves
		run('setting', "SET statement_timeout = '" . int(5 + rand 100) . " ms'") if chance(0.1);
		one_statement(1);
		run('setting', 'RESET statement_timeout') if goes_on();
		return;
	}
	run('setting', "SET envrt.reuse_wait_timeout = '" . pick(0, 0, 50, 500) . " ms'");
	run('begin', 'BEGIN' . (chance(0.1) ? ' ISOLATION LEVEL REPEATABLE READ' : ''));
	my $depth = 0;
	for (1 .. 1 + int rand 4)
	{
		if (chance(0.4))
		{
			run('savepoint', 'SAVEPOINT s' . ++$depth);
		}
		one_statement() if goes_on();
		if ($depth > 0 && chance(0.5))
		{
			my $to = 1 + int rand $depth;
			run(chance(0.7) ? ('rollback to', "ROLLBACK TO s$to") : ('savepoint', "RELEASE s$to")) if goes_on();
			$depth = $to - 1;
		}
	}
	run(chance(0.3) ? ('rollback', 'ROLLBACK') : ('commit', 'COMMIT')) if goes_on();
	run('wait', "SELECT id FROM envrt_await_lease('" . $1 . "', '200 ms')")
	  if goes_on() && chance(0.3) && run('look', "SELECT lease_id FROM envrt.lease_requests WHERE state = 'queued' LIMIT 1")->{out} =~ /^([0-9a-f-]{36})$/;
	return;
}

sub client
{
	my ($number, $file) = @_;

	srand $seed + $number;
	# A psql that has ended is no end of ours.
	$SIG{PIPE} = 'IGNORE';
	while (time < $until)
	{
		last if (!$session || $session->is_lost) && !reconnect();
		transaction();
	}
	spew($file, to_json({ done => \%done, wrong => \@wrong }));
	return;
}

#######################################################################
# The killer
#######################################################################

my %killed;

sub pids
{
	my ($sql) = @_;
	my ($status, $out) = $node->psql('postgres', $sql, timeout => 20);

	return $status == 0 ? grep { $_ > 0 } split /\n/, $out : ();
}

sub restart
{
	$node->stop('immediate', fail_ok => 1);
	for my $try (1 .. 20)
	{
		return if $node->start(fail_ok => 1);
		sleep 0.2;
	}
	die 'the server does not start';
}

my %kills = (
	'driver host' => sub { kill 'KILL', pids('SELECT pid FROM envrt.stat_driver_host') },
	'plugin worker' => sub { my @workers = map { EnvrtFixture::processes_below($_) } pids('SELECT pid FROM envrt.stat_driver_host'); @workers ? kill 'KILL', pick(@workers) : 0 },
	'scheduler' => sub { kill 'KILL', pids('SELECT pid FROM envrt.stat_schedulers WHERE pid > 0') },
	'launcher' => sub { kill 'KILL', pids("SELECT pid FROM pg_stat_activity WHERE backend_type = 'envrt launcher'") },
	'backend' => sub { kill 'KILL', pids("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1") },
	'pg_terminate_backend' => sub { scalar pids("SELECT pg_terminate_backend(pid)::int FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1") },
	'pg_terminate_backend of the scheduler' => sub { scalar pids('SELECT pg_terminate_backend(pid)::int FROM envrt.stat_schedulers WHERE pid > 0') },
	'server' => sub { restart(); 1 });
# Those that don't take the server with them come more often.
my @kills = (('driver host', 'plugin worker') x 3, ('pg_terminate_backend', 'pg_terminate_backend of the scheduler') x 1, 'scheduler', 'launcher', 'backend', 'server');
my @knobs = qw(acquire-die-before acquire-die-after acquire-fail resume-die-after resume-fail release-die-before release-die-after release-fail destroy-die-before
  destroy-die-after destroy-fail list-die-before);

my @children;
my $directory = temporary_directory();
$until = time + $seconds;
for my $number (1 .. $clients)
{
	push @children, EnvrtFixture::spawn(sub { client($number, "$directory/$number") });
}
srand $seed;
while (time < $until - $pause)
{
	sleep $pause;
	my $kill = pick(@kills);
	$killed{$kill}++ if $kills{$kill}->();
	# And the provider has its own troubles.
	$provider->set_knob(pick(@knobs), 1) if chance(0.5);
	# For a while, which may be longer than an acquire has patience.
	$provider->set_knob('resume-fail', 1 + int rand 12) if chance(0.3);
	$provider->set_knob('acquire-delay', sprintf '%.3f', rand 0.05) if chance(0.3);
}
for my $child (@children)
{
	waitpid $child, 0;
	is($?, 0, 'a client has come to its end');
}
$provider->clear_knobs;

#######################################################################
# Afterwards
#######################################################################

# The last kill may have taken the server along.
wait_until('the server to be back', sub { ($node->psql('postgres', "SELECT 1 FROM envrt.stat_schedulers WHERE state = 'running'"))[1] eq '1' });

my (%total, %found);
for my $number (1 .. $clients)
{
	my $result = from_json(slurp("$directory/$number"));

	$total{$_} += $result->{done}{$_} for keys %{ $result->{done} };
	$found{$_}++ for @{ $result->{wrong} };
}
diag "killed: $_ $killed{$_}" for sort keys %killed;
diag "done: $_ $total{$_}" for sort keys %total;
diag sprintf 'provider: %s', join ', ', map { "$_ " . $provider->count($_) } qw(create again resume release destroy destroy-absent);
is(join("\n", map { "$_ ($found{$_} times)" } sort keys %found), '', 'the clients have seen nothing that must not be');
is($node->safe_psql('postgres', "SELECT count(*) FROM envrt.lease_requests WHERE sqlstate = '23505'"), '0', 'nothing was to be held twice by a requested lease');
is(join("\n", $provider->settled($node, timeout => 30)), '', 'nothing is leaked, lost, held or ended twice');

# When nobody needs anything, there is nothing.
$node->safe_psql('postgres', <<'SQL');
UPDATE envrt.heartbeat_runs SET status = 'cancelled' WHERE status = 'running';
SELECT envrt_release_lease(id) FROM envrt.environment_leases WHERE status = 'retained';
UPDATE envrt.environments SET status = 'archived';
SQL
is(join("\n", $provider->settled($node, timeout => 60, cleaned => 1)), '', 'all is cleaned up');
is(scalar $provider->sandboxes, 0, 'nothing exists when nothing is needed');
is($node->safe_psql('postgres', 'SELECT count(*) FROM envrt.provider_leases'), '0', 'the ledger is empty');
done_testing();
