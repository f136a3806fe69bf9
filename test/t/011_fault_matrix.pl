# The matrix: at each point of acquire, renew, release, destroy, settling, cleanup, expiry and queued
# leases, and inside the provider, what may end there does.  Afterwards, within 10 seconds, what exists is
# what the leases say, and each lease is what was committed.
#
# One test per cell.  A point is reached by a session, or by the scheduler because of what a session has
# committed; for the latter ROLLBACK is that of a transaction that wants the same meanwhile.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use Test::More;
use Time::HiRes qw(sleep time);
use EnvrtTest;
use EnvrtFixture qw(processes_below);
use EnvrtProvider;
use EnvrtSdk;
use EnvrtSession;

my $node = new_cluster('matrix', conf => EnvrtProvider::conf(EnvrtSdk::plugins($EnvrtSdk::versions[0])) . <<'CONF');
restart_after_crash = on
autovacuum = off
envrt.provider_timeout = '2s'
CONF
my $company = make_company($node);
my $agent = make_agent($node, $company);
my $session;    # of the cell
my $control;    # beside it
my @providers;
my $provider;
my %matrix;
my @columns = ('ROLLBACK', 'ROLLBACK TO SAVEPOINT', 'pg_terminate_backend', 'kill -9 of the plugin worker', 'kill -9 of the driver host',
	'kill -9 of the backend', 'kill -9 of the scheduler', 'kill -9 of the launcher', 'immediate shutdown', 'kill -9 of the postmaster');
# To see one row or column: patterns
my ($only_row, $only_column) = map { $_ // '' } @ENV{qw(ENVRT_MATRIX_ROW ENVRT_MATRIX_COLUMN)};

#######################################################################
# Words for what the cells do
#######################################################################

# By the session beside the cell's; dies when it fails.
sub sql
{
	my ($sql) = @_;
	my $result = $control->run($sql);

	die "$sql: $result->{state} $result->{message}" if $result->{state} ne '00000';
	return $result->{out};
}

sub true
{
	my ($query) = @_;

	return $control->run("SELECT $query")->{out} eq 't';
}

sub await
{
	my ($what, $query, $timeout) = @_;

	return wait_until($what, sub { true($query) }, $timeout // 20);
}

sub server_is_back
{
	wait_until('the server to be back',
		sub {
			$control = EnvrtSession->new($node) if !$control || $control->is_lost;
			return !$control->is_lost && true("EXISTS (SELECT FROM envrt.stat_schedulers WHERE state = 'running')")
			  && true("EXISTS (SELECT FROM envrt.stat_driver_host WHERE state = 'running')");
		}, 60);
	return;
}

sub arm
{
	my ($point, $action) = @_;

	sql("SELECT envrt.arm_fault_point('$point', '" . ($action // 'wait') . "')");
	return;
}

# It may be gone with the server.
sub disarm
{
	my ($point) = @_;

	$control->run("SELECT envrt.disarm_fault_point('$point')");
	return;
}

sub new_run
{
	return sql("INSERT INTO envrt.heartbeat_runs (company_id, agent_id, status, started_at) VALUES ('$company', '$agent', 'running', now()) RETURNING id");
}

sub acquire_sql
{
	my ($environment, $run, $expires) = @_;

	return "SELECT id FROM envrt_acquire_lease('$company', '$environment', '$run'" . ($expires ? ", expires_in => '$expires'" : '') . ')';
}

# A committed lease, which the scheduler has nothing more to do for.
sub new_lease
{
	my ($environment, $expires) = @_;
	my $lease = sql(acquire_sql($environment, new_run(), $expires));

	await('the lease to be held', "EXISTS (SELECT FROM envrt.provider_leases WHERE holder_id = '$lease' AND state = 'held')");
	return $lease;
}

# There is something idle to be resumed.
sub make_idle
{
	my ($cell) = @_;
	my $lease = new_lease($cell->{environment});

	sql("SELECT id FROM envrt_release_lease('$lease')");
	await('it to be idle', "EXISTS (SELECT FROM envrt.provider_leases WHERE environment_id = '$cell->{environment}' AND state = 'idle')");
	return;
}

sub status_is
{
	my ($lease, $status) = @_;

	return "(SELECT status FROM envrt.environment_leases WHERE id = '$lease') = '$status'";
}

#######################################################################
# What a session does: prepare, its statement, and what is so when it is done and when it is not
#######################################################################

my %operations = (
	acquire => {
		prepare => sub { my ($cell) = @_; $cell->{run} = new_run() },
		statement => sub { my ($cell) = @_; acquire_sql($cell->{environment}, $cell->{run}, '1 day') },
		done => sub { my ($cell) = @_; "(SELECT count(*) FROM envrt.environment_leases WHERE heartbeat_run_id = '$cell->{run}' AND status = 'active') = 1" },
		undone => sub { my ($cell) = @_; "NOT EXISTS (SELECT FROM envrt.environment_leases WHERE heartbeat_run_id = '$cell->{run}')" },
		finally => sub { my ($cell) = @_; sql("SELECT count(*) FROM envrt_release_leases('$cell->{run}')") },
	},
	renew => {
		prepare => sub { my ($cell) = @_; $cell->{lease} = new_lease($cell->{environment}, '1 day') },
		statement => sub { my ($cell) = @_; "SELECT id FROM envrt_renew_lease('$cell->{lease}', '2 days')" },
		done => sub { my ($cell) = @_; "(SELECT status = 'active' AND expires_at > now() + '25 h' FROM envrt.environment_leases WHERE id = '$cell->{lease}')" },
		undone => sub { my ($cell) = @_; "(SELECT status = 'active' AND expires_at < now() + '25 h' FROM envrt.environment_leases WHERE id = '$cell->{lease}')" },
	},
	release => {
		prepare => sub { my ($cell) = @_; $cell->{lease} = new_lease($cell->{environment}) },
		statement => sub { my ($cell) = @_; "SELECT id FROM envrt_release_lease('$cell->{lease}')" },
		done => sub { my ($cell) = @_; status_is($cell->{lease}, 'released') },
		undone => sub { my ($cell) = @_; status_is($cell->{lease}, 'active') },
	},
	destroy => {
		prepare => sub { my ($cell) = @_; $cell->{lease} = new_lease($cell->{environment}) },
		statement => sub { my ($cell) = @_; "SELECT id FROM envrt_destroy_lease('$cell->{lease}')" },
		done => sub { my ($cell) = @_; status_is($cell->{lease}, 'failed') },
		undone => sub { my ($cell) = @_; status_is($cell->{lease}, 'active') },
	});

#######################################################################
# What makes the scheduler come by: cause, and what is so in the end; with ROLLBACK in place of it
#######################################################################

# Something that is rolled back is in the provider, so there is something to settle and to clean up.
sub cause_rollback
{
	my ($cell, $to_savepoint) = @_;

	$cell->{run} = new_run();
	$session->run('BEGIN');
	$session->run('SAVEPOINT s');
	$session->run(acquire_sql($cell->{environment}, $cell->{run}));
	# The transaction stays open in the second case.
	$session->run($to_savepoint ? 'ROLLBACK TO s' : 'ROLLBACK');
	$cell->{open} = $to_savepoint;
	$cell->{expect} = "NOT EXISTS (SELECT FROM envrt.environment_leases WHERE heartbeat_run_id = '$cell->{run}')";
	return;
}

my %causes = (
	# A reusable one is told of its release, and kept.
	keep => {
		prepare => sub {
			my ($cell) = @_;
			$cell->{column} =~ /^ROLLBACK/ ? make_idle($cell) : ($cell->{lease} = new_lease($cell->{environment}));
		},
		cause => sub {
			my ($cell) = @_;
			$session->run("SELECT id FROM envrt_release_lease('$cell->{lease}')");
			$cell->{expect} = "(SELECT (status, cleanup_status) = ('released', 'success') FROM envrt.environment_leases WHERE id = '$cell->{lease}')"
			  . " AND EXISTS (SELECT FROM envrt.provider_leases WHERE environment_id = '$cell->{environment}' AND state = 'idle')";
		},
		rollback => sub {
			my ($cell, $to_savepoint) = @_;
			cause_rollback($cell, $to_savepoint);
			$cell->{expect} .= " AND EXISTS (SELECT FROM envrt.provider_leases WHERE environment_id = '$cell->{environment}' AND state = 'idle')";
		},
	},
	# It goes, whatever its policy is.
	destroy => {
		prepare => sub { my ($cell) = @_; $cell->{lease} = new_lease($cell->{environment}) },
		cause => sub {
			my ($cell) = @_;
			$session->run("SELECT id FROM envrt_destroy_lease('$cell->{lease}')");
			$cell->{expect} = "(SELECT (status, cleanup_status) = ('failed', 'success') FROM envrt.environment_leases WHERE id = '$cell->{lease}')"
			  . " AND NOT EXISTS (SELECT FROM envrt.provider_leases WHERE lease_id = '$cell->{lease}')";
		},
		rollback => \&cause_rollback,
	},
	cleanup => {
		prepare => sub { my ($cell) = @_; $cell->{lease} = new_lease($cell->{environment}) },
		cause => sub {
			my ($cell) = @_;
			$session->run("SELECT id FROM envrt_release_lease('$cell->{lease}')");
			$cell->{expect} = "(SELECT (status, cleanup_status) = ('released', 'success') FROM envrt.environment_leases WHERE id = '$cell->{lease}')";
		},
		rollback => \&cause_rollback,
	},
	expiry => {
		prepare => sub { my ($cell) = @_; $cell->{other} = new_lease($cell->{environment}, '1 day') },
		cause => sub {
			my ($cell) = @_;
			$cell->{lease} = $session->run(acquire_sql($cell->{environment}, new_run(), '100 ms'))->{out};
			$cell->{expect} = "(SELECT (status, cleanup_status) = ('expired', 'success') FROM envrt.environment_leases WHERE id = '$cell->{lease}') AND "
			  . status_is($cell->{other}, 'active');
		},
		# Another one's end is taken back while the scheduler is at it.
		rollback => sub {
			my ($cell, $to_savepoint) = @_;
			$session->run($_) for 'BEGIN', 'SAVEPOINT s', "SELECT id FROM envrt_renew_lease('$cell->{other}', '1 ms')";
			$cell->{lease} = sql(acquire_sql($cell->{environment}, new_run(), '100 ms'));
			$cell->{expect} = "(SELECT (status, cleanup_status) = ('expired', 'success') FROM envrt.environment_leases WHERE id = '$cell->{lease}') AND "
			  . status_is($cell->{other}, 'active');
			$cell->{take_back} = $to_savepoint ? 'ROLLBACK TO s' : 'ROLLBACK';
			$cell->{open} = $to_savepoint;
		},
	},
	request => {
		prepare => sub { my ($cell) = @_; $cell->{run} = new_run(); $cell->{other} = new_run() },
		cause => sub {
			my ($cell) = @_;
			my $lease = $session->run("SELECT envrt_request_lease('$company', '$cell->{environment}', '$cell->{run}')")->{out};
			$cell->{expect} = "(SELECT count(*) = 1 AND min(id::text) = '$lease' FROM envrt.environment_leases WHERE heartbeat_run_id = '$cell->{run}' AND status = 'active')";
			# An error of the provider is the request's.
			$cell->{expect} .= " OR EXISTS (SELECT FROM envrt.lease_requests WHERE lease_id = '$lease' AND sqlstate = '38000')" if $cell->{column} =~ /worker/;
		},
		# Another request is taken back while the scheduler is at this one.
		rollback => sub {
			my ($cell, $to_savepoint) = @_;
			$session->run($_) for 'BEGIN', 'SAVEPOINT s', "SELECT envrt_request_lease('$company', '$cell->{environment}', '$cell->{other}')";
			my $lease = sql("SELECT envrt_request_lease('$company', '$cell->{environment}', '$cell->{run}')");
			$cell->{expect} = "(SELECT count(*) = 1 AND min(id::text) = '$lease' FROM envrt.environment_leases WHERE heartbeat_run_id = '$cell->{run}' AND status = 'active')"
			  . " AND NOT EXISTS (SELECT FROM envrt.environment_leases WHERE heartbeat_run_id = '$cell->{other}')";
			$cell->{take_back} = $to_savepoint ? 'ROLLBACK TO s' : 'ROLLBACK';
			$cell->{open} = $to_savepoint;
		},
	});

#######################################################################
# What ends things
#######################################################################

# Not one that has ended and that nobody has waited for yet.
sub is_running
{
	my ($pid) = @_;

	open my $file, '<', "/proc/$pid/stat" or return 0;
	return <$file> !~ /^.*\) Z/;
}

my %strikes = (
	'pg_terminate_backend' => sub { my ($cell) = @_; sql("SELECT pg_terminate_backend($cell->{victim})") },
	'kill -9 of the plugin worker' => sub { kill 'KILL', processes_below(sql('SELECT pid FROM envrt.stat_driver_host')) },
	'kill -9 of the driver host' => sub {
		my $pid = sql('SELECT pid FROM envrt.stat_driver_host');
		kill 'KILL', $pid;
		await('another driver host', "EXISTS (SELECT FROM envrt.stat_driver_host WHERE state = 'running' AND pid <> $pid)");
	},
	'kill -9 of the backend' => sub { kill 'KILL', $session->backend },
	'kill -9 of the scheduler' => sub { kill 'KILL', sql('SELECT pid FROM envrt.stat_schedulers') },
	'kill -9 of the launcher' => sub { kill 'KILL', sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'envrt launcher'") },
	'immediate shutdown' => sub {
		$node->stop('immediate');
		$node->start;
	},
	'kill -9 of the postmaster' => sub {
		# The driver host and its workers included
		my @processes = ($node->{_pid}, processes_below($node->{_pid}));
		$node->kill9;
		wait_until('the processes of the server to end', sub { !grep { is_running($_) } @processes });
		# Where nobody has waited for it, it seems to be there.
		unlink $node->data_dir . '/postmaster.pid', $node->host . '/.s.PGSQL.' . $node->port . '.lock';
		$node->start;
		1;
	});
# Those that take all sessions along
my %is_crash = map { $_ => 1 } grep { /^kill -9 of the (backend|scheduler|launcher|postmaster)|^immediate/ } keys %strikes;

sub strike
{
	my ($cell) = @_;

	die 'no such ending' if $strikes{ $cell->{column} }->($cell) eq '0';
	return if !$is_crash{ $cell->{column} };
	# It is over when the connection is.
	wait_until('the server to go', sub { $control->run('SELECT 1'); $control->is_lost });
	server_is_back();
	return;
}

#######################################################################
# Cells
#######################################################################

sub is_waiting
{
	my ($point) = @_;

	return "EXISTS (SELECT FROM envrt.stat_fault_points WHERE name = '$point' AND waiting > 0)";
}

# Rows: what, where it is parked, and how.  park is run before the statement, parked says when it is
# there, unpark lets it go on.
sub at_point
{
	my ($point) = @_;

	return (park => sub { arm($point) }, parked => sub { true(is_waiting($point)) }, unpark => sub { disarm($point) });
}

# In the provider: before the effect, or after it and before the answer.
sub in_provider
{
	my ($verbs, $when) = @_;
	my $knob = $when eq 'before' ? 'delay' : 'late';
	my $done;

	return (
		park => sub { $provider->set_knob("$_-$knob", 0.4) for @$verbs; $done = scalar $provider->journal },
		parked => sub {
			return $provider->journal > $done if $when eq 'after';
			return true("EXISTS (SELECT FROM envrt.stat_calls WHERE state = 'asking the plugin')");
		},
		unpark => sub { $provider->clear_knobs });
}

# A session is at the point, and is what ends or is taken back.
sub session_cell
{
	my ($cell) = @_;
	my $operation = $operations{ $cell->{operation} };
	my $column = $cell->{column};
	my $committed = 0;

	$operation->{prepare}->($cell);
	$cell->{victim} = $session->backend;
	$session->run('BEGIN');
	# In a subtransaction or not
	$session->run('SAVEPOINT s') if $column =~ /TO/ || !$cell->{park};
	my $statement = $operation->{statement}->($cell);
	if ($cell->{park})
	{
		$cell->{park}->();
		$session->start($statement);
		wait_until("$cell->{row} to be reached", $cell->{parked});
		if ($cell->{by_scheduler} && $column eq 'pg_terminate_backend')
		{
			$cell->{victim} = sql('SELECT pid FROM envrt.stat_schedulers');
		}
	}
	else
	{
		$session->run($statement);
	}

	if ($column =~ /^ROLLBACK/)
	{
		# What is under way ends first, with an error.
		if ($cell->{park})
		{
			sql("SELECT pg_cancel_backend($cell->{victim})");
			my $state = $session->finish->{state};
			die "the statement ended with $state and not by the cancel" if $state ne '57014';
			$cell->{unpark}->();
		}
		$session->run($column =~ /TO/ ? 'ROLLBACK TO s' : 'ROLLBACK');
		$cell->{open} = $column =~ /TO/;
	}
	else
	{
		strike($cell);
		$cell->{unpark}->() if $cell->{park};
		my $result = $cell->{park} ? $session->finish : { state => $session->is_lost ? 'lost' : '00000' };
		die "$cell->{row}: the statement does not end" if !$result;
		$committed = $result->{state} eq '00000' && $session->run('COMMIT')->{state} eq '00000';
		die "$cell->{row}, $column: the statement has ended well" if $committed && $cell->{victim} == $session->backend && $column =~ /backend/;
		$cell->{note} = $result->{state};
		$session->run('ROLLBACK') if !$session->is_lost && !$committed;
	}
	$cell->{expect} = $committed ? $operation->{done}->($cell) : $operation->{undone}->($cell);
	return;
}

# The scheduler is at the point because of what a session has done.
sub scheduler_cell
{
	my ($cell) = @_;
	my $cause = $causes{ $cell->{operation} };
	my $column = $cell->{column};

	$cause->{prepare}->($cell);
	$cell->{park}->();
	if ($column =~ /^ROLLBACK/)
	{
		$cause->{rollback}->($cell, $column =~ /TO/);
		wait_until("$cell->{row} to be reached", $cell->{parked});
		$session->run($cell->{take_back}) if $cell->{take_back};
	}
	else
	{
		$cause->{cause}->($cell);
		wait_until("$cell->{row} to be reached", $cell->{parked});
		$cell->{victim} = sql('SELECT pid FROM envrt.stat_schedulers');
		strike($cell);
		# Nobody has asked whether it is still there.
		$session->run('SELECT 1');
	}
	$cell->{unpark}->();
	return;
}

sub check
{
	my ($cell) = @_;
	my $start = time;
	my @problems;

	push @problems, settle_by_hand($cell) if $cell->{unresolved};
	push @problems, $provider->settled($control, timeout => 10);
	my $left = 10 - (time - $start);

	wait_until('what is expected', sub { true($cell->{expect}) }, $left < 0 ? 0 : $left) if !@problems;
	return @problems;
}

sub run_cell
{
	my (%cell) = @_;
	my $cell = \%cell;
	my $name = "$cell{row}, $cell{column}";
	my $start = time;

	server_is_back();
	$session = EnvrtSession->new($node) if !$session || $session->is_lost;
	# There is one to be killed; and one that is started slowly is there.
	wait_until('its worker to run', sub { true("(SELECT ok FROM envrt_probe('$cell{environment}'))") }) if $cell{column} =~ /worker/ || $cell{kind};
	my @problems = eval {
		make_idle($cell) if $cell{reuse};
		$cell{is_of} eq 'session' ? session_cell($cell) : scheduler_cell($cell);
		check($cell);
	};
	push @problems, $@ if $@;
	$provider->clear_knobs;
	ok(!@problems, $name) or diag join "\n", @problems;
	$matrix{ $cell{row} }{ $cell{column} } = @problems ? 'BROKEN' : $cell{unresolved} ? 'open' : 'ok';
	note sprintf '%.2f s %s %s', time - $start, $name, $cell{note} // '';
	# A failed cell leaves nothing to the next one.
	if (@problems)
	{
		undef $session;
		server_is_back();
		sql('SELECT envrt.disarm_fault_point(name) FROM envrt.stat_fault_points');
	}
	elsif (!$session->is_lost)
	{
		$session->run('ROLLBACK') if $cell{open};
	}
	return;
}

#######################################################################
# Rows
#######################################################################

my @rows;

for my $point (qw(acquire-before-driver acquire-before-ledger acquire-after-ledger acquire-after-call acquire-before-lock acquire-before-insert acquire-after-insert))
{
	push @rows, { row => $point, is_of => 'session', operation => 'acquire', at_point($point) };
}
push @rows, { row => 'acquire, uncommitted', is_of => 'session', operation => 'acquire' };
for my $point (qw(ledger-before-commit ledger-after-commit))
{
	push @rows, { row => "acquire, $point", is_of => 'session', operation => 'acquire', by_scheduler => 1, at_point($point) };
}
for my $when (qw(before after))
{
	push @rows, { row => "acquire, $when the effect", is_of => 'session', operation => 'acquire', provider => [ ['acquire'], $when ] };
}
for my $point (qw(acquire-after-ledger acquire-after-call))
{
	push @rows, { row => "resume, $point", is_of => 'session', operation => 'acquire', reuse => 1, at_point($point) };
}
push @rows, { row => 'resume, after the effect', is_of => 'session', operation => 'acquire', reuse => 1, provider => [ ['resume'], 'after' ] };
push @rows, { row => 'resume, uncommitted', is_of => 'session', operation => 'acquire', reuse => 1 };
for my $operation (qw(renew release destroy))
{
	for my $point ("$operation-before-update", "$operation-after-update")
	{
		push @rows, { row => $point, is_of => 'session', operation => $operation, at_point($point) };
	}
	push @rows, { row => "$operation, uncommitted", is_of => 'session', operation => $operation };
}
for my $point (qw(settle-before-look settle-before-commit cleanup-before-taken cleanup-before-call cleanup-after-call cleanup-before-commit cleanup-after-commit))
{
	push @rows, { row => $point, is_of => 'scheduler', operation => 'cleanup', at_point($point) };
}
for my $when (qw(before after))
{
	# What was rolled back is destroyed, what was held is released.
	push @rows, { row => "cleanup, $when the effect", is_of => 'scheduler', operation => 'cleanup', provider => [ [qw(release destroy)], $when ] };
}
for my $point (qw(cleanup-before-call cleanup-after-call cleanup-before-commit))
{
	push @rows, { row => "keep, $point", is_of => 'scheduler', operation => 'keep', reusable => 1, at_point($point) };
}
push @rows, { row => 'keep, after the effect', is_of => 'scheduler', operation => 'keep', reusable => 1, provider => [ ['release'], 'after' ] };
push @rows, { row => 'destroy, after the effect', is_of => 'scheduler', operation => 'destroy', provider => [ [qw(release destroy)], 'after' ] };
for my $point (qw(expiry-before-batch expiry-before-commit expiry-after-commit))
{
	push @rows, { row => $point, is_of => 'scheduler', operation => 'expiry', at_point($point) };
}
for my $point (qw(request-before-commit request-before-call request-after-call request-before-insert-commit))
{
	push @rows, { row => $point, is_of => 'scheduler', operation => 'request', at_point($point) };
}

for my $point (qw(request-before-call request-after-call))
{
	push @rows, { row => "resume, $point", is_of => 'scheduler', operation => 'request', reuse => 1, at_point($point) };
}

# Plugins written for the SDK can't list what exists.  One that knows its leases by their leaseId needs not;
# of the other one nobody can tell what became of an acquire, once its worker has been killed.
for my $kind (qw(tempdir tempdir-keyed))
{
	for my $when (qw(before after))
	{
		push @rows,
		  {
			row => "SDK, $kind: acquire, $when the effect", is_of => 'session', operation => 'acquire', kind => $kind,
			provider => [ ['acquire'], $when ], blind => $kind eq 'tempdir'
		  };
	}
	push @rows,
	  {
		row => "SDK, $kind: cleanup, after the effect", is_of => 'scheduler', operation => 'cleanup', kind => $kind,
		provider => [ [qw(release destroy)], 'after' ]
	  };
}

my $reused = 0;
server_is_back();
for my $row (grep { $_->{row} =~ /$only_row/ } @rows)
{
	# Each row has a provider's directory of its own; a failure is not seen in the next one again.
	$provider = EnvrtProvider->new;
	push @providers, $provider;
	my %way = $row->{provider} ? in_provider(@{ $row->{provider} }) : ();
	my $environment;

	for my $column (grep { /$only_column/ } @columns)
	{
		server_is_back();
		my $reusable = $row->{reuse} || $row->{reusable};
		# Every other of those that are used again has a provider that gives the environment's name to each of its sandboxes.
		my $named = $reusable && ++$reused % 2;
		$environment = $provider->make_environment($node, $company, provider => $row->{kind} // 'journal', $reusable ? (leasePolicy => 'reuse_by_environment') : (), $named ? (named => JSON::PP::true) : ()) if !$environment || $reusable;
		run_cell(%$row, %way, column => $column, environment => $environment, unresolved => $row->{blind} && $column !~ /^ROLLBACK|terminate/);
	}
}

#######################################################################
# The provider's own troubles, of providers that can list what exists, that know it by its key, or neither
#######################################################################

# What has an id is released and destroyed by it, whatever else the provider can do.
my %kinds = ('tempdir' => [qw(acquire resume release)], 'tempdir-keyed' => ['acquire'], 'journal' => [qw(acquire resume release keep destroy)], 'journal-keyed' => ['acquire'], 'journal-blind' => [qw(acquire resume release)]);
my @troubles = qw(fail die-before die-after hang stall);
my %troubles;

# What is asked of the provider: what to prepare, the statement that asks, what is so afterwards.
my %asked = (
	acquire => {
		statement => sub { my ($cell) = @_; acquire_sql($cell->{environment}, $cell->{run} = new_run()) },
		expect => sub { my ($cell) = @_; "NOT EXISTS (SELECT FROM envrt.environment_leases WHERE heartbeat_run_id = '$cell->{run}')" },
	},
	# What can't be resumed is kept: it is tried again, by this acquire or the next.
	resume => {
		reusable => 1,
		prepare => sub { my ($cell) = @_; make_idle($cell); $cell->{idle} = sql("SELECT provider_lease_id FROM envrt.provider_leases WHERE environment_id = '$cell->{environment}'") },
		statement => sub { my ($cell) = @_; acquire_sql($cell->{environment}, $cell->{run} = new_run()) },
		expect => sub { my ($cell) = @_; "EXISTS (SELECT FROM envrt.environment_leases WHERE heartbeat_run_id = '$cell->{run}' AND status = 'active' AND provider_lease_id = '$cell->{idle}')" },
	},
	release => {
		prepare => sub { my ($cell) = @_; $cell->{lease} = new_lease($cell->{environment}) },
		statement => sub { my ($cell) = @_; "SELECT id FROM envrt_release_lease('$cell->{lease}')" },
		expect => sub { my ($cell) = @_; "(SELECT (status, cleanup_status) = ('released', 'success') FROM envrt.environment_leases WHERE id = '$cell->{lease}')" },
	},
	keep => {
		reusable => 1,
		verb => 'release',
		prepare => sub { my ($cell) = @_; $cell->{lease} = new_lease($cell->{environment}) },
		statement => sub { my ($cell) = @_; "SELECT id FROM envrt_release_lease('$cell->{lease}')" },
		expect => sub { my ($cell) = @_; "(SELECT (status, cleanup_status) = ('released', 'success') FROM envrt.environment_leases WHERE id = '$cell->{lease}')" },
	},
	destroy => {
		prepare => sub { my ($cell) = @_; $cell->{lease} = new_lease($cell->{environment}) },
		statement => sub { my ($cell) = @_; "SELECT id FROM envrt_destroy_lease('$cell->{lease}')" },
		expect => sub { my ($cell) = @_; "(SELECT (status, cleanup_status) = ('failed', 'success') FROM envrt.environment_leases WHERE id = '$cell->{lease}')" },
	});

# A driver host that remembers nothing, whose workers are not held back for having crashed before.  With
# the whole server, since a driver host that ends often is held back as well.
sub new_driver_host
{
	$node->stop('immediate');
	$node->start;
	server_is_back();
	$session = EnvrtSession->new($node);
	return;
}

# A person looks after what nobody can tell, and says so.
sub settle_by_hand
{
	my ($cell) = @_;
	my $unresolved = "SELECT p.lease_id FROM envrt.stat_cleanup p WHERE p.environment_id = '$cell->{environment}' AND p.state = 'unresolved'";

	await('it to be unresolved', "EXISTS ($unresolved)");
	my @problems = $provider->problems($control);
	return 'unresolved is no problem' if !grep { /is unresolved/ } @{ $problems[0] };
	unlink glob "$provider->{directory}/exists/*";
	sql("SELECT envrt_forget_provider_lease(lease_id) FROM ($unresolved) u");
	return;
}

sub trouble_cell
{
	my ($cell) = @_;
	my $asked = $asked{ $cell->{asked} };
	my $verb = $asked->{verb} // $cell->{asked};
	my $trouble = $cell->{trouble};
	my $blind = $cell->{kind} =~ /^(journal-blind|tempdir)$/ && $verb eq 'acquire';
	my @problems;

	$asked->{prepare}->($cell) if $asked->{prepare};
	$provider->set_knob("$verb-$trouble", $trouble =~ /^(hang|stall)$/ ? 'always' : 1);
	my $result = $session->run($asked->{statement}->($cell));
	die "the acquire has ended well" if $verb eq 'acquire' && $result->{state} !~ /^(38000|08006|57014)$/;
	die "$result->{state} $result->{message}" if $verb !~ /^(acquire|resume)$/ && $result->{state} ne '00000' || $verb eq 'resume' && $result->{state} !~ /^(00000|38000)$/;
	if ($trouble =~ /^(hang|stall)$/)
	{
		# It has been asked, and will be asked again.
		await('it to have failed', "EXISTS (SELECT FROM envrt.provider_leases WHERE environment_id = '$cell->{environment}' AND last_error IS NOT NULL)")
		  if $verb ne 'acquire' && $verb ne 'resume';
		$provider->clear_knobs;
	}
	# It was in vain for as long as it is tried; what was idle is there for the next.
	wait_until('it to be resumed', sub { $session->run($asked->{statement}->($cell))->{state} eq '00000' }, 30) if $verb eq 'resume' && $result->{state} ne '00000';
	if ($verb eq 'acquire' && ($trouble eq 'stall' || $trouble eq 'hang' && $cell->{kind} ne 'journal'))
	{
		# As long as it may still be made, its end is not believed; when the worker is gone it is.
		await('an end that is not believed',
			"EXISTS (SELECT FROM envrt.provider_leases WHERE environment_id = '$cell->{environment}' AND last_error IS NOT NULL AND state IN ('cleaning', 'unresolved'))");
		kill 'KILL', processes_below(sql('SELECT pid FROM envrt.stat_driver_host'));
	}
	push @problems, settle_by_hand($cell) if $blind && $trouble ne 'fail';
	push @problems, $provider->settled($control, cleaned => 1);
	wait_until('what is expected', sub { true($asked->{expect}->($cell)) }, 10) if !@problems;
	return @problems;
}

$node->append_conf('postgresql.conf', "envrt.provider_timeout = '1s'\nenvrt.reuse_retry = '2s'");
for my $kind (sort keys %kinds)
{
	for my $asked (@{ $kinds{$kind} })
	{
		for my $trouble (@troubles)
		{
			my $name = "$kind: $asked, $trouble";
			my $start = time;

			next if $name !~ /$only_row/ || $only_column ne '';
			$provider = EnvrtProvider->new;
			push @providers, $provider;
			new_driver_host();
			my %cell = (asked => $asked, kind => $kind, trouble => $trouble);
			$cell{environment} = $provider->make_environment($node, $company, provider => $kind, $asked{$asked}{reusable} ? (leasePolicy => 'reuse_by_environment') : ());
			# Node may need longer than its calls may take.
			wait_until('its worker to run', sub { true("(SELECT ok FROM envrt_probe('$cell{environment}'))") }) if $kind =~ /^tempdir/;
			my @problems = eval { trouble_cell(\%cell) };
			push @problems, $@ if $@;
			$provider->clear_knobs;
			ok(!@problems, $name) or diag join "\n", @problems;
			$troubles{"$kind: $asked"}{$trouble} = @problems ? 'BROKEN' : 'ok';
			note sprintf '%.2f s %s', time - $start, $name;
		}
	}
}

# When nobody needs anything, there is nothing.
server_is_back();
sql("UPDATE envrt.heartbeat_runs SET status = 'cancelled'");
sql("UPDATE envrt.environments SET status = 'archived'");
is(join("\n", map { $_->settled($control, cleaned => 1) } @providers), '', 'all is cleaned up in the end');
is(join("\n", map { map { "@$_" } $_->sandboxes } @providers), '', 'and nothing exists');

my @names = map { $_->{row} } @rows;
diag sprintf '%-46s %s', '', join ' ', map { sprintf '%-6s', $_ } 1 .. @columns;
for my $name (grep { $matrix{$_} } @names)
{
	diag sprintf '%-46s %s', $name, join ' ', map { sprintf '%-6s', $matrix{$name}{$_} // '-' } @columns;
}
diag sprintf '%d: %s', $_ + 1, $columns[$_] for 0 .. $#columns;
diag sprintf '%-46s %s', '', join ' ', map { sprintf '%-10s', $_ } @troubles;
for my $name (sort keys %troubles)
{
	diag sprintf '%-46s %s', $name, join ' ', map { sprintf '%-10s', $troubles{$name}{$_} // '-' } @troubles;
}
done_testing();
