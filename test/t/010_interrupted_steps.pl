# What can come between the steps of acquire, release, renew and expiry, and the end of a process or of
# the server at each of them: afterwards the leases say what was committed, and nothing else.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use IPC::Run ();
use Test::More;
use EnvrtTest;

my $sshd = EnvrtFixture::Sshd->new->start;
my $node = new_cluster('faults', conf => 'restart_after_crash = on');
my $company = make_company($node);
my $fake = make_fake_environment($node, $company);
my $ssh = make_ssh_environment($node, $company, $sshd);

sub arm
{
	my ($name, $action) = @_;

	$node->safe_psql('postgres', "SELECT envrt.arm_fault_point('$name', '" . ($action // 'wait') . "')");
	return;
}

sub disarm
{
	my ($name) = @_;

	$node->safe_psql('postgres', "SELECT envrt.disarm_fault_point('$name')");
	return;
}

# A session in the background; returns when it waits at the armed point.
sub start_session
{
	my ($point, $sql) = @_;
	my $self = { out => '', err => '' };

	$self->{handle} = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-v', 'VERBOSITY=verbose', map { ('-c', $_) } @$sql ],
		'>', \$self->{out}, '2>', \$self->{err});
	wait_until_sql($node, "SELECT waiting = 1 FROM envrt.stat_fault_points WHERE name = '$point'", "a session to come by $point");
	return $self;
}

sub finish_session
{
	my ($self) = @_;

	IPC::Run::finish($self->{handle});
	return $self->{err};
}

sub server_is_back
{
	wait_until('the server to be back', sub {
			my ($status, $out) = $node->psql('postgres', "SELECT count(*) FROM envrt.stat_schedulers WHERE state = 'running'");
			$status == 0 && $out eq '1';
		}, 60);
	return;
}

# For superusers; bad input
is((sql_state($node, "SELECT envrt.arm_fault_point('x', 'explode')"))[0], '22023', 'an action that is none');
is((sql_state($node, "SELECT envrt.arm_fault_point('', 'wait')"))[0], '22023', 'no name');
is((sql_state($node, "SELECT envrt.arm_fault_point(i::text) FROM generate_series(1, 17) i"))[0], '53400', 'more than there is room for');
$node->safe_psql('postgres', 'SELECT envrt.disarm_fault_point(i::text) FROM generate_series(1, 17) i');
$node->safe_psql('postgres', 'CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA envrt TO app; GRANT EXECUTE ON FUNCTION envrt.arm_fault_point TO app');
is((sql_state($node, "SELECT envrt.arm_fault_point('x')", psql => { extra_params => [ '-U', 'app' ] }))[0], '42501', 'for superusers only, whatever is granted');
is($node->safe_psql('postgres', 'SELECT count(*) FROM envrt.stat_fault_points'), '0', 'none is armed');

# What others do between an acquire's driver call and its row
for my $case (
	[ 'the environment archived', "UPDATE envrt.environments SET status = 'archived' WHERE id = '%s'", '55000', qr/is not active/ ],
	[ 'the environment deleted', "DELETE FROM envrt.environments WHERE id = '%s'", '42704', qr/Environment .* not found/ ],
	[ 'the environment changed', "UPDATE envrt.environments SET config = config || '{\"username\": \"other\"}' WHERE id = '%s'", '55000', qr/changed meanwhile/ ],
	[ 'the run over', "UPDATE envrt.heartbeat_runs SET status = 'cancelled' WHERE id = '%2\$s'", '55000', qr/is over/ ],
	[ 'the run deleted', "DELETE FROM envrt.heartbeat_runs WHERE id = '%2\$s'", '42704', qr/Run .* not found/ ])
{
	my ($name, $sql, $state, $pattern) = @$case;
	my $environment = make_ssh_environment($node, $company, $sshd);
	my $run = make_run($node, $company);

	arm('acquire-before-lock');
	my $session = start_session('acquire-before-lock', [ "SELECT envrt_acquire_lease('$company', '$environment', '$run')" ]);
	$node->safe_psql('postgres', sprintf($sql . ' -- %s %s', $environment, $run, $environment, $run) =~ s/ --.*//sr);
	disarm('acquire-before-lock');
	my $err = finish_session($session);
	like($err, qr/ERROR:  $state:/, "$name during an acquire") or diag $err;
	like($err, $pattern, "$name: says so");
}
is($node->safe_psql('postgres', "SELECT count(*) FROM envrt.environment_leases"), '0', 'none of them left a lease');

# The extension comes back while its scheduler is finding it gone
{
	arm('scheduler-found-absent');
	$node->safe_psql('postgres', 'CREATE DATABASE race');
	wait_until_sql($node, "SELECT waiting >= 1 FROM envrt.stat_fault_points WHERE name = 'scheduler-found-absent'");
	$node->safe_psql('race', 'CREATE EXTENSION envrt');
	disarm('scheduler-found-absent');
	wait_until_sql($node, "SELECT count(*) = 1 FROM envrt.stat_schedulers WHERE database = 'race' AND state = 'running'");
	pass('CREATE EXTENSION while a scheduler finds it absent: there is a scheduler afterwards');
	$node->safe_psql('postgres', 'DROP DATABASE race');
}

# The matrix: each point, each way to end there.  The expected state of the lease is that before the
# statement, since nothing of it was committed; what was not harmed goes on and commits.
my %statements = (
	'acquire-before-driver' => 'acquire', 'acquire-before-lock' => 'acquire', 'acquire-before-insert' => 'acquire', 'acquire-after-insert' => 'acquire',
	'release-before-update' => 'release', 'release-after-update' => 'release',
	'renew-before-update' => 'renew', 'renew-after-update' => 'renew');
my @endings = ('ROLLBACK', 'ROLLBACK TO SAVEPOINT', 'error', 'pg_cancel_backend', 'pg_terminate_backend', 'kill -9 of the backend', 'kill -9 of the driver host', 'immediate shutdown');
my %matrix;

sub sql_of
{
	my ($what, $environment, $run, $lease) = @_;

	return "SELECT status FROM envrt_acquire_lease('$company', '$environment', '$run', expires_in => '1 day')" if $what eq 'acquire';
	return "SELECT status FROM envrt_release_leases('$run')" if $what eq 'release';
	return "SELECT status FROM envrt_renew_lease('$lease', '2 days')";
}

for my $point (sort keys %statements)
{
	my $what = $statements{$point};

	for my $ending (@endings)
	{
		my $environment = $what eq 'acquire' ? $ssh : $fake;
		my $run = make_run($node, $company);
		my $lease = $what eq 'acquire' ? ''
		  : $node->safe_psql('postgres', "SELECT id FROM envrt_acquire_lease('$company', '$environment', '$run', expires_in => '1 day')");
		my $query = "SELECT string_agg(concat_ws('|', id, status, expires_at, updated_at), ',') FROM envrt.environment_leases WHERE heartbeat_run_id = '$run'";
		my $before = $node->safe_psql('postgres', $query);
		my $sql = sql_of($what, $environment, $run, $lease);
		my $goes_on = 0;

		if ($ending eq 'ROLLBACK' || $ending eq 'ROLLBACK TO SAVEPOINT')
		{
			# No process ends here: the statement is through, and taken back.
			my @after = $ending eq 'ROLLBACK' ? ('ROLLBACK') : ('ROLLBACK TO s', 'COMMIT');

			$node->safe_psql('postgres', join(";\n", 'BEGIN', 'SAVEPOINT s', $sql, @after));
		}
		elsif ($ending eq 'error')
		{
			arm($point, 'error');
			is((sql_state($node, $sql))[0], '58000', "$point: an error");
			disarm($point);
		}
		else
		{
			arm($point);
			my $session = start_session($point, [$sql]);
			my $pid = $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE query LIKE 'SELECT status FROM envrt_%' AND state = 'active'");

			if ($ending =~ /^pg_/)
			{
				$node->safe_psql('postgres', "SELECT $ending($pid)");
			}
			elsif ($ending eq 'kill -9 of the backend')
			{
				kill 'KILL', $pid;
			}
			elsif ($ending eq 'kill -9 of the driver host')
			{
				kill 'KILL', $node->safe_psql('postgres', 'SELECT pid FROM envrt.stat_driver_host');
				wait_until_sql($node, "SELECT state = 'running' AND restarts > 0 FROM envrt.stat_driver_host");
				disarm($point);
				$goes_on = 1;
			}
			else
			{
				$node->stop('immediate');
				$node->start;
			}
			my $err = finish_session($session);
			is($err, '', "$point, $ending: the statement goes on") if $goes_on;
			server_is_back() if $ending =~ /backend$|shutdown/ && $ending !~ /^pg_/;
			disarm($point);
		}

		my $after = $node->safe_psql('postgres', $query);
		my $kept = $goes_on ? $after ne $before : $after eq $before;

		ok($kept, "$point, $ending: " . ($goes_on ? 'done' : 'as it was before'));
		$matrix{$point}{$ending} = $kept ? 'ok' : 'BROKEN';
		# And the same statement works afterwards.
		$node->safe_psql('postgres', $sql) if !$goes_on;
		isnt($node->safe_psql('postgres', $query), $before, "$point, $ending: it works afterwards") if !$goes_on;
	}
}

# Expiry, in the scheduler
for my $point ('expiry-before-batch', 'expiry-before-commit', 'expiry-after-commit')
{
	for my $ending ('error', 'exit', 'crash', 'pg_terminate_backend', 'immediate shutdown')
	{
		my $run = make_run($node, $company);

		arm($point, $ending =~ /^(error|exit|crash)$/ ? $ending : 'wait');
		my $lease = $node->safe_psql('postgres', "SELECT id FROM envrt_acquire_lease('$company', '$fake', '$run', expires_in => '200 ms')");
		if ($ending eq 'error' || $ending eq 'exit')
		{
			wait_until_sql($node, "SELECT hits > 0 FROM envrt.stat_fault_points WHERE name = '$point'");
			disarm($point);
		}
		elsif ($ending eq 'crash')
		{
			# The points are gone with the restart.
			wait_until('the crash', sub {
					my ($status, $out) = $node->psql('postgres', 'SELECT count(*) FROM envrt.stat_fault_points');
					$status == 0 && $out eq '0';
				}, 60);
			server_is_back();
		}
		else
		{
			wait_until_sql($node, "SELECT waiting = 1 FROM envrt.stat_fault_points WHERE name = '$point'");
			if ($ending eq 'pg_terminate_backend')
			{
				$node->safe_psql('postgres', 'SELECT pg_terminate_backend(pid) FROM envrt.stat_schedulers');
				disarm($point);
			}
			else
			{
				$node->stop('immediate');
				$node->start;
			}
		}
		wait_until_sql($node, "SELECT status = 'expired' AND cleanup_status = 'success' FROM envrt.environment_leases WHERE id = '$lease'",
			"the lease to expire after $ending at $point", 90);
		pass("$point, $ending: the lease is expired afterwards, once");
		$matrix{$point}{$ending} = 'ok';
	}
}

for my $point (sort keys %matrix)
{
	note sprintf '%-24s %s', $point, join '; ', map { "$_: $matrix{$point}{$_}" } sort keys %{ $matrix{$point} };
}
done_testing();
