# Commands that outlive who asked for them: their rows, their output while it comes, and what becomes of
# them when a lease, a scheduler, a driver host or the server ends.
use strict;
use warnings;

use Encode ();
use FindBin;
use IPC::Open3 qw(open3);
use lib "$FindBin::RealBin/../lib";
use Test::More;
use Time::HiRes qw(time);
use EnvrtTest;
use EnvrtProvider;
use EnvrtRecorder;
use EnvrtSession;

my $sandboxes = temporary_directory();
my $sshd = EnvrtFixture::Sshd->new->start;
my $node = new_cluster('executions', conf => join "\n",
	"envrt.sandbox_directory = '$sandboxes'",
	'envrt.sandbox_on_data_filesystem = on',
	"envrt.max_output = '64 kB'",
	'restart_after_crash = on',
	'max_prepared_transactions = 2',
	EnvrtProvider::conf(),
	'');
my $company = make_company($node);
my %environment = (ssh => make_ssh_environment($node, $company, $sshd));

# Where the machine lets nobody make namespaces, what is left is the SSH host.
$environment{sandbox} = make_environment($node, $company, 'sandbox', { provider => 'bubblewrap' }) if has_sandboxes();

my $run = make_run($node, $company);
my (%lease, %workspace);

sub take_leases
{
	for my $driver (sort keys %environment)
	{
		$lease{$driver} = acquire($node, $company, $environment{$driver}, $run)->{id};
		$workspace{$driver} = $driver eq 'ssh' ? "$sshd->{directory}/workspace" : "$sandboxes/leases/$lease{$driver}/workspace";
	}
	return;
}

# Starts a shell command; returns its id.  Named arguments are SQL.
sub start
{
	my ($driver, $script, %arguments) = @_;
	my $more = join '', map { ", $_ => $arguments{$_}" } sort keys %arguments;

	return $node->safe_psql('postgres',
		"SELECT envrt_start_execution('$lease{$driver}', 'sh', ARRAY['-c', " . literal($script) . "]$more)");
}

sub state
{
	my ($id) = @_;

	return $node->safe_psql('postgres', "SELECT state FROM envrt.executions WHERE id = '$id'");
}

sub await_state
{
	my ($id, $state) = @_;

	wait_until_sql($node, "SELECT state = '$state' FROM envrt.executions WHERE id = '$id'", "the execution is $state");
	return;
}

# How one ended: state, sqlstate, message.
sub ending
{
	my ($id) = @_;

	return split /\|/, $node->safe_psql('postgres', "SELECT state, sqlstate, message FROM envrt.executions WHERE id = '$id'");
}

sub output
{
	my ($id, $stream) = @_;

	return $node->safe_psql('postgres',
		"SELECT string_agg(output, '' ORDER BY position) FROM envrt.execution_output WHERE execution_id = '$id' AND stream = '$stream'");
}

sub await_output
{
	my ($id, $text) = @_;

	wait_until_sql($node, "SELECT coalesce(string_agg(output, '' ORDER BY position), '') LIKE " . literal("%$text%")
		  . " FROM envrt.execution_output WHERE execution_id = '$id'", "the output has \"$text\"");
	return;
}

sub await_execution
{
	my ($id) = @_;

	return from_json($node->safe_psql('postgres', "SELECT to_jsonb(e) FROM envrt_await_execution('$id', '60 s') e"));
}

# How many processes of this machine have this word in their arguments.
sub processes_with
{
	my ($word) = @_;
	my $count = 0;

	for my $file (glob '/proc/[0-9]*/cmdline')
	{
		open my $handle, '<', $file or next;
		local $/;
		my $arguments = <$handle> // '';
		$count++ if $arguments =~ /(?:^|\0)\Q$word\E(?:\0|$)/;
	}
	return $count;
}

sub scheduler
{
	return $node->safe_psql('postgres', "SELECT pid FROM envrt.stat_schedulers WHERE database = 'postgres'");
}

take_leases();
for my $driver (sort keys %lease)
{
	my $id = start($driver, 'echo out; echo err >&2; cat; exit 3', stdin => "E'in\\n'", env => q('{"A": "x"}'));
	my $result = await_execution($id);

	is_deeply([ @$result{qw(exit_code signal timed_out stdout stderr)} ], [ 3, undef, JSON::PP::false, "out\nin\n", "err\n" ], "$driver: a command that was started")
	  or diag explain $result;
	is($result->{metadata}{stdoutBytes}, 7, "$driver: ... with its metadata");
	is($node->safe_psql('postgres', "SELECT state, exit_code, env IS NULL, stdin IS NULL, started_at >= created_at, finished_at >= started_at FROM envrt.executions WHERE id = '$id'"),
		'exited|3|t|t|t|t', "$driver: ... and its row, which keeps neither env nor stdin");
	$result = await_execution(start($driver, 'kill -KILL $$'));
	is($result->{signal}, 'SIGKILL', "$driver: ended by a signal");
	$result = await_execution(start($driver, 'echo begun; sleep 60', timeout => "'300 ms'"));
	is_deeply([ @$result{qw(timed_out stdout)} ], [ JSON::PP::true, "begun\n" ], "$driver: ended by its time limit");

	# Output is there while it runs, for others too.
	$id = start($driver, 'echo first; while ! test -e go; do sleep 0.05; done; echo second; rm go');
	await_output($id, "first");
	is(state($id), 'running', "$driver: output comes while it runs");
	is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'envrt scheduler' AND (backend_xmin IS NOT NULL OR xact_start IS NOT NULL)"),
		'0', "$driver: ... and no transaction is open for it");

	# Someone who follows sees each line as it comes.
	my $pid = open3(my $in, my $out, undef, 'psql', '-XAtq', '-d', $node->connstr('postgres'));
	print $in "\\set FETCH_COUNT 1\nSELECT (f).output FROM (SELECT envrt_follow_execution('$id') AS f) lines;\n";
	close $in;
	is(scalar <$out>, "first\n", "$driver: who follows it is told");
	is(state($id), 'running', "$driver: ... while it runs");
	PostgreSQL::Test::Utils::append_to_file("$workspace{$driver}/go", '');
	is(join('', <$out>), "\nsecond\n\n", "$driver: ... of all of it, and of the end");
	waitpid $pid, 0;
	is(await_execution($id)->{exit_code}, 0, "$driver: ... which came");

	# Bytes that are no text
	$id = start($driver, 'printf "a\\0b\\377c"');
	is(await_execution($id)->{stdout}, Encode::encode('UTF-8', "a\x{fffd}b\x{fffd}c"), "$driver: as text, what is no text is replaced");
	is($node->safe_psql('postgres', "SELECT encode(string_agg(coalesce(data, convert_to(output, 'UTF8')), '' ORDER BY position), 'hex') FROM envrt.execution_output WHERE execution_id = '$id'"),
		unpack('H*', "a\0b\377c"), "$driver: ... and the bytes are kept");

	# A driver that fails
	my ($state, $message) = sql_state($node, "SELECT envrt_await_execution('" . start($driver, 'true', cwd => "'/no/such/place'") . "')");
	is($state, '22023', "$driver: a cwd that is not there is what it ends with");
	like($message, qr{/no/such/place}, "$driver: ... and is named");

	# Cancelled
	$id = start($driver, 'echo begun; exec sleep 1234.5');
	await_output($id, 'begun');
	ok(processes_with('1234.5'), "$driver: a command runs");
	my $started = time;
	is($node->safe_psql('postgres', "SELECT envrt_cancel_execution('$id')"), 't', "$driver: it is cancelled");
	await_state($id, 'cancelled');
	cmp_ok(time - $started, '<', 2, "$driver: ... at once");
	wait_until('its process is gone', sub { !processes_with('1234.5') });
	is($node->safe_psql('postgres', "SELECT envrt_cancel_execution('$id')"), 'f', "$driver: a second time there is nothing to cancel");
	is((sql_state($node, "SELECT envrt_await_execution('$id')"))[0], '57014', "$driver: which whoever waits is told");
	$started = time;
	$id = start($driver, q(trap '' TERM; echo begun; sleep 1234.625 & wait; sleep 1234.625));
	await_output($id, 'begun');
	# One that takes effect at the commit is ending until then, however slow the machine is.
	is($node->safe_psql('postgres', "BEGIN; SELECT envrt_cancel_execution('$id'); SELECT envrt_cancel_execution('$id'); COMMIT"), "t\nt", "$driver: while it is ending a cancel is true again");
	wait_until('one that ignores SIGTERM is gone', sub { !processes_with('1234.625') });
	await_state($id, 'cancelled');
}

# What is wrong is said at once, and what is rolled back never was.
is((sql_state($node, "SELECT envrt_start_execution('00000000-0000-0000-0000-000000000000', 'true')"))[0], '42704', 'no such lease');
is((sql_state($node, "SELECT envrt_start_execution('$lease{ssh}', 'true', env => '{\"A\": 1}')"))[0], '22023', 'a bad env');
is((sql_state($node, "SELECT envrt_start_execution('$lease{ssh}', 'true', timeout => '0')"))[0], '22023', 'a bad timeout');
is((sql_state($node, "SELECT envrt_await_execution('00000000-0000-0000-0000-000000000000')"))[0], '42704', 'no such execution');
is((sql_state($node, "BEGIN; SELECT envrt_await_execution(envrt_start_execution('$lease{ssh}', 'true'))"))[0], '55000', 'the transaction that asks can\'t wait');
is((sql_state($node, "BEGIN; SELECT envrt_follow_execution(envrt_start_execution('$lease{ssh}', 'true'))"))[0], '55000', '... nor follow');
$node->safe_psql('postgres', "BEGIN; SELECT envrt_start_execution('$lease{ssh}', 'touch', ARRAY['rolled-back']); ROLLBACK");
is(await_execution(start('ssh', 'ls rolled-back'))->{exit_code}, 2, 'a rollback takes a start back');
is((sql_state($node, "SELECT envrt_await_execution('" . start('ssh', 'sleep 60') . "', '100 ms')"))[0], '57014', 'waiting has its time');
is((sql_state($node, "SET statement_timeout = '100 ms'; SELECT envrt_await_execution(id) FROM envrt.executions WHERE state = 'running'"))[0], '57014', '... and can be cancelled');
$node->safe_psql('postgres', "SELECT envrt_cancel_execution(id) FROM envrt.executions WHERE state = 'running'");
{
	my $id = $node->safe_psql('postgres', "BEGIN; SELECT envrt_start_execution('$lease{ssh}', 'touch', ARRAY['never']) AS id \\gset\nSELECT envrt_cancel_execution(:'id'); COMMIT; SELECT :'id'");
	$id =~ s/.*\n//s;
	await_state($id, 'cancelled');
	is(await_execution(start('ssh', 'ls never'))->{exit_code}, 2, 'what is cancelled before it starts does not');
}

# A cancel that waits for its commit is in nobody's way.
{
	my $session = EnvrtSession->new($node);
	my $id = start('ssh', 'echo begun; while ! test -e go; do sleep 0.05; done; rm go; echo more; exec sleep 1234.75');

	await_output($id, 'begun');
	$session->run("BEGIN; SELECT envrt_cancel_execution('$id')");
	PostgreSQL::Test::Utils::append_to_file("$workspace{ssh}/go", '');
	await_output($id, 'more');
	pass('output goes on while a cancel is not committed');
	is(await_execution(start('ssh', 'echo other'))->{stdout}, "other\n", '... and so do others');
	$session->run('ROLLBACK');
	is(state($id), 'running', 'a rollback takes a cancel back');
	$node->safe_psql('postgres', "SELECT envrt_cancel_execution('$id')");
	await_state($id, 'cancelled');
}

# Output that a trigger refuses keeps nobody from theirs, nor from a cancel.
{
	my $logged = -s $node->logfile;
	my $create = sub {
		$node->safe_psql('postgres', <<"SQL");
CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \$\$ BEGIN $_[0]; END \$\$;
CREATE OR REPLACE TRIGGER refuse BEFORE INSERT ON envrt.execution_output FOR EACH ROW WHEN (NEW.output LIKE 'refused%') EXECUTE FUNCTION refuse();
SQL
	};

	$create->("RAISE 'not this output'");
	my $id = start('ssh', 'echo refused; exec sleep 1234.625');
	wait_until_sql($node, "SELECT count(*) = 1 FROM envrt.stat_failures WHERE row_id = '$id' AND attempts >= 2 AND next_attempt_at > last_attempt_at", 'output that is refused is tried again');
	is(await_execution(start('ssh', 'echo other'))->{stdout}, "other\n", 'another execution has its output');
	is(scalar(() = PostgreSQL::Test::Utils::slurp_file($node->logfile, $logged) =~ /ERROR:  not this output/g), 1, 'it is logged once');
	$node->safe_psql('postgres', "SELECT envrt_cancel_execution('$id')");
	await_state($id, 'cancelled');
	wait_until_sql($node, 'SELECT count(*) = 0 FROM envrt.stat_failures', 'what is over is not shown any more');
	# Without an error it is somebody's filter.
	$create->('RETURN NULL');
	is(await_execution(start('ssh', 'echo refused; sleep 0.2; echo kept'))->{stdout}, "kept\n", 'a trigger drops what it returns NULL for, and no more');
	$node->safe_psql('postgres', 'DROP TRIGGER refuse ON envrt.execution_output; DROP FUNCTION refuse()');
}

# The plugin's leases are in the ledger, so that acquiring one takes the scheduler.
my $keyed = make_environment($node, $company, 'sandbox', { provider => 'recorder', directory => temporary_directory() });

# A table that somebody has locked delays a start, and does no more.
{
	my $session = EnvrtSession->new($node);

	$node->safe_psql('postgres', "SELECT envrt.arm_fault_point('execution-before-start')");
	my $first = start('ssh', 'true');
	wait_until_sql($node, 'SELECT waiting = 1 FROM envrt.stat_fault_points', 'the scheduler is there');
	my $second = start('ssh', 'echo after all');
	$session->run('BEGIN; LOCK TABLE envrt.environments IN ACCESS EXCLUSIVE MODE');
	$node->safe_psql('postgres', "SELECT envrt.disarm_fault_point('execution-before-start')");
	await_state($first, 'exited');
	is(state($second), 'queued', 'an execution that can\'t start for a lock waits');
	# Whoever has the lock can wait for the scheduler.
	my $lease = $session->run("SET statement_timeout = '20 s'; SELECT id FROM envrt_acquire_lease('$company', '$keyed', '$run')");
	is($lease->{state}, '00000', '... but not the scheduler, for whom who has the lock may wait') or diag $lease->{message};
	$session->run('COMMIT');
	is(await_execution($second)->{stdout}, "after all\n", '... and starts when it can');
}

# Tables of executions that somebody has locked are in nobody's way but theirs.
{
	my $session = EnvrtSession->new($node);
	my $other_run = make_run($node, $company);
	my @ids = map { start('ssh', 'while ! test -e go; do echo x; sleep 0.05; done') } 1 .. 5;

	await_output($_, 'x') for @ids;
	for my $table (qw(execution_output executions))
	{
		$session->run("BEGIN; LOCK TABLE envrt.$table IN ACCESS EXCLUSIVE MODE");
		my $waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = " . scheduler();
		my $started = time;
		acquire($node, $company, $keyed, $other_run) for 1 .. 3;
		cmp_ok(time - $started, '<', 5, "leases are acquired while $table is locked");
		is($node->safe_psql('postgres', $waits), '0', '... and no lock is waited for');
		$session->run('COMMIT');
	}
	PostgreSQL::Test::Utils::append_to_file("$workspace{ssh}/go", '');
	like(await_execution($_)->{stdout}, qr/\A(?:x\n)+\z/, '... and output goes on') for @ids;
	unlink "$workspace{ssh}/go";
	release($node, $other_run);
}

# Rows that somebody has locked are in nobody's way: neither who is queued behind, nor the next scheduler.
{
	my $session = EnvrtSession->new($node);

	$node->safe_psql('postgres', "SELECT envrt.arm_fault_point('execution-before-start')");
	my $first = start('ssh', 'echo one; sleep 1; echo two; while ! test -e go; do sleep 0.05; done');
	wait_until_sql($node, 'SELECT waiting = 1 FROM envrt.stat_fault_points', 'the scheduler is there');
	my @queued = map { start('ssh', "echo $_") } 1 .. 20;
	$session->run('BEGIN; SELECT envrt_cancel_execution(id) FROM envrt.executions WHERE state IN (\'queued\', \'running\')');
	my $behind = start('ssh', 'echo behind');
	$node->safe_psql('postgres', "SELECT envrt.disarm_fault_point('execution-before-start')");
	is(await_execution($behind)->{stdout}, "behind\n", 'rows that are locked are in nobody\'s way');
	await_output($first, 'two');
	my $pid = scheduler();
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	wait_until('there is another scheduler', sub { my $other = scheduler(); $other && $other ne $pid });
	is(await_execution(start('ssh', 'echo next'))->{stdout}, "next\n", '... nor the next scheduler\'s');
	$session->run('ROLLBACK');
	PostgreSQL::Test::Utils::append_to_file("$workspace{ssh}/go", '');
	is(await_execution($first)->{stdout}, "one\ntwo\n", 'what was kept before its start was written down is kept once');
	is(await_execution($queued[$_])->{stdout}, ($_ + 1) . "\n", 'what was not cancelled runs') for 0, 19;
	unlink "$workspace{ssh}/go";
}

# Above READ COMMITTED
{
	my $session = EnvrtSession->new($node);

	$session->run('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
	my $id = start('ssh', 'echo begun; sleep 1234.25');
	await_output($id, 'begun');
	is($session->run("SELECT envrt_cancel_execution('$id')")->{state}, '40001', 'a cancel that can\'t be is none');
	$session->run('ROLLBACK');
	is($session->run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT envrt_cancel_execution('$id')")->{out}, 't', 'one that can');
	$session->run('COMMIT');
	await_state($id, 'cancelled');
	$id = start('ssh', 'seq 3');
	await_execution($id);
	is($node->safe_psql('postgres', "SELECT (f).output FROM (SELECT envrt_follow_execution('$id') AS f LIMIT 1) lines"), "1\n2\n3\n", 'who follows can stop');
	is((sql_state($node, "BEGIN; SELECT envrt_start_execution('$lease{ssh}', 'touch', ARRAY['prepared']); PREPARE TRANSACTION 'started'; COMMIT PREPARED 'started'"))[0],
		'00000', 'in a transaction that is prepared');
	wait_until_sql($node, "SELECT count(*) = 1 FROM envrt.executions WHERE args = ARRAY['prepared'] AND state = 'exited'", 'it runs after its commit');
}

# What does not fit is refused, and is nobody else's trouble.
{
	is((sql_state($node, "SELECT envrt_start_execution('$lease{ssh}', 'true', ARRAY[repeat('x', 20000000)])"))[0], '54000', 'a command that does not fit');
	is((sql_state($node, "SELECT envrt_execute('$lease{ssh}', 'true', ARRAY[repeat('x', 20000000)])"))[0], '54000', '... to wait for either');
	my $id = $node->safe_psql('postgres', "INSERT INTO envrt.executions (id, system_identifier, database_id, timeline, instance, company_id, environment_id, lease_id, command, args, env)"
		  . " SELECT gen_random_uuid(), system_identifier, database_id, timeline, instance, company_id, environment_id, '$lease{ssh}', 'true', ARRAY[repeat('x', 20000000)], '{}'"
		  . " FROM envrt.executions WHERE lease_id = '$lease{ssh}' LIMIT 1 RETURNING id");
	is(await_execution(start('ssh', 'echo others'))->{stdout}, "others\n", 'others run');
	await_state($id, 'failed');
	is((sql_state($node, "SELECT envrt_await_execution('$id')"))[0], '54000', '... while it fails');
}

# Limits of what is kept
{
	my $id = start('ssh', 'head -c 300000 /dev/zero | tr "\\0" x');
	my $result = await_execution($id);

	is(length $result->{stdout}, 65536, 'envrt_await_execution returns no more than envrt.max_output');
	ok($result->{metadata}{stdoutTruncated}, '... and says so');
	is(length output($id, 'stdout'), 300000, '... while the table has all of it');
	# Half of what is written goes to each stream.
	$id = start('ssh', 'i=0; while [ $i -lt 30000 ]; do echo $i; i=$((i + 1)); echo €$i >&2; done');
	$result = await_execution($id);
	for my $stream (qw(stdout stderr))
	{
		my ($all, $text) = map { Encode::decode('UTF-8', $_) } output($id, $stream), $result->{$stream};
		my ($at, $missing) = @{ $result->{metadata} }{"${stream}MissingAt", "${stream}MissingBytes"};
		my $first = substr $all, 0, $at;
		my $last = substr $text, $at;

		ok($text eq $first . substr($all, -length $last), "$stream has its beginning and its end");
		is(length(Encode::encode('UTF-8', $first . $last)) + $missing, length Encode::encode('UTF-8', $all), '... and what is missing is counted');
	}
	$node->append_conf('postgresql.conf', "envrt.max_execution_output = '100 kB'");
	$node->reload;
	wait_until_sql($node, "SELECT current_setting('envrt.max_execution_output') = '100kB'");
	# The scheduler has it when an execution shows it.
	wait_until('the scheduler has the setting', sub {
			$id = start('ssh', 'head -c 1000000 /dev/zero | tr "\\0" x');
			await_execution($id)->{metadata}{outputTruncated};
		});
	my $kept = length output($id, 'stdout');
	cmp_ok($kept, '<', 150000, 'the table keeps no more than envrt.max_execution_output');
	is_deeply([ @{ await_execution($id)->{metadata} }{qw(stdoutBytes outputMissingBytes)} ], [ 1000000, 1000000 - $kept ], '... and counts the rest');
	for my $driver (sort keys %environment)
	{
		$id = start($driver, 'seq 1 200000; echo the reason; exit 3');
		my $result = await_execution($id);
		like(output($id, 'stdout'), qr/^1\n2\n.*\n200000\nthe reason\n\z/s, "$driver: the table keeps the beginning and the end");
		like($result->{stdout}, qr/^1\n2\n.*\n200000\nthe reason\n\z/s, '... and so does the result');
		is($result->{exit_code}, 3, '... of a command that was not held up');
	}
	$node->append_conf('postgresql.conf', "envrt.max_execution_output = '100 MB'");
	$node->reload;
	wait_until('the scheduler has the setting', sub { !exists await_execution(start('ssh', 'head -c 200000 /dev/zero'))->{metadata}{outputTruncated} });
}

# Secrets: references in the row, values with the command
{
	my $secret = $node->safe_psql('postgres', "SELECT envrt_create_secret('$company', 'token', 'top-secret-value')");
	my $reference = qq({"TOKEN": {"type": "secret_ref", "secretId": "$secret", "version": "latest"}});

	is(await_execution(start('ssh', 'echo $TOKEN', env => "'$reference'"))->{stdout}, "top-secret-value\n", 'a secret in env');
	$node->safe_psql('postgres', q{
		CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA envrt TO app;
		GRANT SELECT ON envrt.companies, envrt.environments, envrt.heartbeat_runs, envrt.environment_leases, envrt.company_secrets,
			envrt.executions, envrt.execution_output TO app;
		GRANT EXECUTE ON FUNCTION envrt_start_execution, envrt_await_execution, envrt_cancel_execution, envrt_follow_execution TO app;
		ALTER TABLE envrt.companies ENABLE ROW LEVEL SECURITY});
	my @as_app = (psql => { extra_params => [ '-U', 'app' ] });
	my $id = start('ssh', 'echo seen');
	await_execution($id);
	is((sql_state($node, "SELECT count(*) FROM envrt.executions", @as_app))[1], '0', 'who sees no company sees no execution');
	is((sql_state($node, "SELECT count(*) FROM envrt.execution_output", @as_app))[1], '0', '... and no output');
	is((sql_state($node, "SELECT envrt_await_execution('$id')", @as_app))[0], '42704', '... and waits for none');
	is((sql_state($node, "SELECT envrt_cancel_execution('$id')", @as_app))[0], '42704', '... and cancels none');
	is((sql_state($node, "SELECT envrt_follow_execution('$id')", @as_app))[0], '42704', '... and follows none');
	$node->safe_psql('postgres', 'CREATE POLICY all_of_them ON envrt.companies FOR SELECT TO app USING (true)');
	is((sql_state($node, "SELECT output FROM envrt.execution_output WHERE execution_id = '$id'", @as_app))[1], "seen\n", 'who sees it sees its output');
	is((sql_state($node, "SELECT envrt_start_execution('$lease{ssh}', 'true', env => '$reference')", @as_app))[0], '42501', 'secrets in env are a right of their own');
	is((sql_state($node, "SELECT stdout FROM envrt_await_execution(envrt_start_execution('$lease{ssh}', 'true'))", @as_app))[0], '55000', 'which other commands need not have');
	$node->safe_psql('postgres', 'ALTER TABLE envrt.companies DISABLE ROW LEVEL SECURITY');
}

# In the transaction that acquires the lease
for my $driver (sort keys %lease)
{
	my $other_run = make_run($node, $company);
	my $id = $node->safe_psql('postgres', "BEGIN; SELECT id AS lease FROM envrt_acquire_lease('$company', '$environment{$driver}', '$other_run') \\gset\n"
		  . "SELECT envrt_start_execution(:'lease', 'echo', ARRAY['at once']); COMMIT");

	is(await_execution($id)->{stdout}, "at once\n", "$driver: started by the transaction that acquires the lease");
	release($node, $other_run);
}

# What another server has written never runs here.
{
	my $columns = 'database_id, timeline, instance, company_id, environment_id, lease_id, command, args, env';
	my $id = $node->safe_psql('postgres', "INSERT INTO envrt.executions (id, system_identifier, $columns)"
		  . " SELECT gen_random_uuid(), system_identifier + 1, database_id, timeline, instance, company_id, environment_id, lease_id, 'touch', ARRAY['foreign'], '{}'"
		  . ' FROM envrt.executions LIMIT 1 RETURNING id');

	is(await_execution(start('ssh', 'echo own'))->{stdout}, "own\n", 'own executions run');
	await_state($id, 'lost');
	is(await_execution(start('ssh', 'ls foreign'))->{exit_code}, 2, 'one of another server does not');
}

# No more at once than leaves room for others
{
	$node->append_conf('postgresql.conf', 'envrt.max_calls = 16');
	$node->reload;
	wait_until_sql($node, 'SELECT settings_since >= pg_conf_load_time() FROM envrt.stat_driver_host', 'the driver host has the setting');
	await_execution(start('ssh', 'true'));
	my @ids = map { start('ssh', 'echo begun; while ! test -e go; do sleep 0.05; done') } 1 .. 7;
	wait_until_sql($node, "SELECT count(*) FILTER (WHERE state = 'running') = 4 FROM envrt.executions WHERE state IN ('queued', 'running')", 'four of them run, a quarter');
	is($node->safe_psql('postgres', "SELECT count(*) FROM envrt.executions WHERE state = 'queued'"), '3', 'and the others wait');
	$node->safe_psql('postgres', "SELECT envrt_cancel_execution('$ids[-1]')");
	await_state($ids[-1], 'cancelled');
	PostgreSQL::Test::Utils::append_to_file("$workspace{ssh}/go", '');
	is(await_execution($_)->{exit_code}, 0, 'until it is their turn') for @ids[ 0 .. 5 ];
	unlink "$workspace{ssh}/go";
	$node->append_conf('postgresql.conf', 'envrt.max_calls = 1000');
	$node->reload;
}

# In a lease of a plugin, which has its output only at the end
{
	my $recorder = EnvrtRecorder->new($node, $company, environmentExecute => { exitCode => 4, signal => undef, timedOut => JSON::PP::false, stdout => "from a plugin\n", stderr => "too\n" });
	my $lease = acquire($node, $company, $recorder->sandbox, $run)->{id};
	my $result = await_execution($node->safe_psql('postgres', "SELECT envrt_start_execution('$lease', 'anything', ARRAY['x'], timeout => '5 s')"));

	is_deeply([ @$result{qw(exit_code stdout stderr)} ], [ 4, "from a plugin\n", "too\n" ], 'a plugin runs one');
	my ($call) = grep { $_->[0] eq 'environmentExecute' } $recorder->calls;
	is_deeply([ @{ $call->[1] }{qw(command args timeoutMs)} ], [ 'anything', ['x'], 5000 ], '... as it was asked');
	ok(!exists $call->[1]{executionId} && !exists $call->[1]{stream}, '... and no other way');
	my ($state, $message) = sql_state($node, "SELECT envrt_await_execution('" . $node->safe_psql('postgres', "SELECT envrt_start_execution('$lease', 'die')") . "')");
	is($state, '38000', 'a plugin that dies is an error');
	$recorder->answer(environmentExecute => { exitCode => 0, signal => undef, timedOut => JSON::PP::false, stdout => 'y' x (16 * 1024 * 1024 - 200), stderr => '' });
	my $id = $node->safe_psql('postgres', "SELECT envrt_start_execution('$lease', 'much')");
	await_state($id, 'exited');
	is($node->safe_psql('postgres', "SELECT sum(length(output)), max(length(output)) FROM envrt.execution_output WHERE execution_id = '$id'"), (16 * 1024 * 1024 - 200) . '|65536', 'as much as a plugin can say in one answer');
	$recorder->answer(environmentExecute => { exitCode => 0, signal => undef, timedOut => JSON::PP::false, stdout => '', stderr => '', metadata => { much => 'y' x 2000000 } });
	is((sql_state($node, "SELECT envrt_await_execution('" . $node->safe_psql('postgres', "SELECT envrt_start_execution('$lease', 'much')") . "')"))[0], '38000', '... but not about it');

	# What it repeats of the secrets it was given
	my $key = $node->safe_psql('postgres', "SELECT envrt_create_secret('$company', 'provider key', 'provider-secret-value')");
	my $secretive = EnvrtRecorder->new($node, $company,
		environmentExecute => { exitCode => 0, signal => undef, timedOut => JSON::PP::false, stdout => "key provider-secret-value\n", stderr => '', metadata => { echo => 'provider-secret-value' } });
	$lease = acquire($node, $company, $secretive->sandbox(apiKey => { type => 'secret_ref', secretId => $key, version => 'latest' }), $run)->{id};
	$id = $node->safe_psql('postgres', "SELECT envrt_start_execution('$lease', 'anything')");
	unlike(to_json(await_execution($id)), qr/provider-secret-value/, 'secrets that a plugin repeats are masked');
	is($node->safe_psql('postgres', "SELECT count(*) FROM envrt.executions e, envrt.execution_output o WHERE o.execution_id = e.id AND (e::text || o::text) LIKE '%provider-secret-value%'"), '0', '... in both tables');
}

# The end of the run
for my $driver (sort keys %lease)
{
	my $other_run = make_run($node, $company);
	my $lease = acquire($node, $company, $environment{$driver}, $other_run)->{id};
	my $id = $node->safe_psql('postgres', "SELECT envrt_start_execution('$lease', 'sh', ARRAY['-c', 'echo begun; exec sleep 1234.875'])");

	await_output($id, 'begun');
	$node->safe_psql('postgres', "UPDATE envrt.heartbeat_runs SET status = 'succeeded' WHERE id = '$other_run'");
	await_state($id, 'cancelled');
	wait_until('its process is gone', sub { !processes_with('1234.875') });
	is_deeply([ ending($id) ], [ 'cancelled', '57014', "Lease \"$lease\" has ended (status: released)." ], "$driver: ... and its row says why");
	like((sql_state($node, "SELECT envrt_await_execution('$id')"))[1], qr/DETAIL:  Lease "$lease" has ended/, "$driver: ... as does who waits");
}

# Other ends of its lease
for my $driver (sort keys %lease)
{
	my $lease = $node->safe_psql('postgres', "SELECT id FROM envrt_acquire_lease('$company', '$environment{$driver}', '$run', expires_in => '1 h')");
	my $id = $node->safe_psql('postgres', "SELECT envrt_start_execution('$lease', 'sh', ARRAY['-c', 'echo begun; exec sleep 1234.9375'])");

	await_output($id, 'begun');
	$node->safe_psql('postgres', "SELECT envrt_renew_lease('$lease', '1 ms')");
	await_state($id, 'cancelled');
	is_deeply([ ending($id) ], [ 'cancelled', '57014', "Lease \"$lease\" has expired." ], "$driver: the lease's time is over");
	is((sql_state($node, "SELECT envrt_await_execution('$id')"))[0], '57014', "$driver: ... which ends a wait");
	$lease = acquire($node, $company, $environment{$driver}, $run)->{id};
	$id = $node->safe_psql('postgres', "SELECT envrt_start_execution('$lease', 'sh', ARRAY['-c', 'echo begun; exec sleep 1234.9375'])");
	await_output($id, 'begun');
	$node->safe_psql('postgres', "DELETE FROM envrt.environment_leases WHERE id = '$lease'");
	await_state($id, 'cancelled');
	is_deeply([ ending($id) ], [ 'cancelled', '57014', "Lease \"$lease\" is not in the table any more." ], "$driver: the lease is deleted");
	wait_until('their processes are gone', sub { !processes_with('1234.9375') });
}

# What the scheduler does later is for what was asked, whatever becomes of the rows: nothing of another company's is reached.
{
	my $theirs = make_company($node, 'theirs');
	my %of_other = (ssh => make_ssh_environment($node, $theirs, $sshd));

	$of_other{sandbox} = make_environment($node, $theirs, 'sandbox', { provider => 'bubblewrap' }) if $environment{sandbox};
	for my $driver (sort keys %lease)
	{
		my $mine = acquire($node, $company, $environment{$driver}, $run)->{id};
		my $start = "SELECT envrt_start_execution('$mine', 'touch', ARRAY['moved'])";
		my $change = "UPDATE envrt.environment_leases SET environment_id = '$of_other{$driver}'";
		my $there = acquire($node, $theirs, $of_other{$driver}, make_run($node, $theirs))->{id};

		my $id = $node->safe_psql('postgres', "BEGIN; $start; $change WHERE id = '$mine'; COMMIT");
		my ($state, $message) = sql_state($node, "SELECT envrt_await_execution('$id', '60 s')");
		is($state, '55000', "$driver: a lease that has been given another's environment before its command starts");
		like($message, qr/given another environment meanwhile/, "$driver: ... which is said");
		# The direct call: an ssh lease is where its environment is, a sandbox where the ledger says.
		is((sql_state($node, "SELECT envrt_execute('$mine', 'true')"))[0], $driver eq 'ssh' ? '42501' : '00000', "$driver: the direct call reaches nothing of theirs");
		# The whole lease becomes theirs.
		$node->safe_psql('postgres', "$change, company_id = '$theirs' WHERE id = '$mine'");
		$id = $node->safe_psql('postgres', "UPDATE envrt.environment_leases SET environment_id = '$environment{$driver}', company_id = '$company' WHERE id = '$mine';"
			  . "BEGIN; $start; $change, company_id = '$theirs' WHERE id = '$mine'; COMMIT");
		is((sql_state($node, "SELECT envrt_await_execution('$id', '60 s')"))[0], '55000', "$driver: ... and their company");
		is((sql_state($node, "SELECT envrt_execute('$mine', 'true')"))[0], '42501', "$driver: what the ledger has is of the company it was made for")
		  if $driver eq 'sandbox';
		is($node->safe_psql('postgres', "SELECT exit_code FROM envrt_execute('$there', 'ls', ARRAY['moved'])"), 2, "$driver: nothing has run there");
		$node->safe_psql('postgres', "SELECT envrt_release_lease(id) FROM unnest(ARRAY['$mine', '$there']::uuid[]) id");
	}
}

# Signals have names, also those that have none of their own.
if ($environment{sandbox})
{
	my %name_of = (SIGTERM => 15, SIGRTMIN => 34, 'SIGRTMIN+1' => 35, 'SIGRTMIN+30' => 64);

	for my $name (sort keys %name_of)
	{
		is(await_execution(start('sandbox', "kill -$name_of{$name} \$\$"))->{signal}, $name, "signal $name_of{$name}");
	}
}

# Its scheduler ends: it goes on, and nothing of its output is lost or doubled.  ENVRT_EXECUTION_SECONDS=600 has
# it go on for that long.
{
	my $lines = ($ENV{ENVRT_EXECUTION_SECONDS} // 3) * 20;
	my @ids = map { start($_, "i=0; while test \$i -lt $lines; do i=\$((i+1)); echo \$i; sleep 0.05; done") } sort keys %lease;

	for my $round (1 .. 3)
	{
		my $pid = scheduler();

		wait_until_sql($node, "SELECT count(DISTINCT execution_id) = " . @ids . " FROM envrt.execution_output WHERE execution_id IN ("
			  . join(', ', map { literal($_) } @ids) . ") AND output LIKE '%" . int($lines * $round / 4) . "\n%'", "round $round", 60 + $lines / 10)
		  if $ENV{ENVRT_EXECUTION_SECONDS};
		$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
		wait_until('there is another scheduler', sub { my $other = scheduler(); $other && $other ne $pid });
	}
	for my $id (@ids)
	{
		wait_until_sql($node, "SELECT state = 'exited' FROM envrt.executions WHERE id = '$id'", 'it ends', 60 + $lines / 10);
		is(output($id, 'stdout'), join('', map { "$_\n" } 1 .. $lines), 'it outlives its schedulers, with all of its output');
	}
}
# Between the row and the driver host
{
	my $pid = scheduler();

	$node->safe_psql('postgres', "SELECT envrt.arm_fault_point('execution-before-start')");
	my $id = start('ssh', 'echo x >> once; cat once');
	wait_until_sql($node, 'SELECT waiting = 1 FROM envrt.stat_fault_points', 'the scheduler is there');
	is(state($id), 'running', 'its row runs before the driver host is told');
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid), envrt.disarm_fault_point('execution-before-start')");
	is(await_execution($id)->{stdout}, "x\n", 'a scheduler that ends there is made up for, once');
}

# What the scheduler writes is counted, so that autovacuum comes to clean up.
wait_until_sql($node, "SELECT count(*) = 2 FROM pg_stat_user_tables WHERE schemaname = 'envrt' AND (relname = 'executions' AND n_tup_upd > 0 OR relname = 'execution_output' AND n_tup_ins > 0)",
	'the scheduler tells what it has done to tables');
pass('the scheduler tells what it has done to tables');

# Many at once
{
	my $count = 100;
	my $driver = has_sandboxes() ? 'sandbox' : 'ssh';

	$node->safe_psql('postgres', "CREATE TABLE many AS SELECT n, envrt_start_execution('$lease{$driver}', 'sh', ARRAY['-c', 'echo \$0', n::text]) AS id FROM generate_series(1, $count) n");
	wait_until_sql($node, "SELECT count(*) = $count FROM many JOIN envrt.executions USING (id) WHERE state = 'exited'", 'all have ended', 120);
	is($node->safe_psql('postgres', "SELECT count(*) FROM many JOIN envrt.execution_output o ON o.execution_id = many.id WHERE output = n || E'\\n'"), $count, 'many at once');
}

# Administrators see what runs, and set what sandboxes may take.
if (has_sandboxes())
{
	my $id = start('sandbox', 'echo begun; exec sleep 1235.25');

	await_output($id, 'begun');
	is($node->safe_psql('postgres', "SELECT commands, image IS NULL FROM envrt.stat_sandboxes WHERE lease_id = '$lease{sandbox}'"), '1|t', 'a sandbox in its view');
	is($node->safe_psql('postgres', "SELECT count(*) FROM envrt.stat_calls WHERE method = 'environmentExecute' AND pid IS NULL"), '1', 'an execution among the calls');
	$node->safe_psql('postgres', "SELECT envrt_cancel_execution('$id')");
	$node->append_conf('postgresql.conf', "envrt.sandbox_processes = 77");
	$node->reload;
	wait_until('the driver host has the setting', sub { await_execution(start('sandbox', 'grep -i "max processes" /proc/self/limits'))->{stdout} =~ / 78 / });
	pass('sandboxes have the limits of the settings (and one process of our own)');
}

# The driver host ends: lost, with its processes.
for my $driver (sort keys %lease)
{
	my $id = start($driver, 'echo begun; exec sleep 1235.5');

	await_output($id, 'begun');
	my $host = $node->safe_psql('postgres', 'SELECT pid FROM envrt.stat_driver_host');
	kill 'KILL', $host;
	await_state($id, 'lost');
	pass("$driver: the driver host's end");
	wait_until('its process is gone', sub { !processes_with('1235.5') });
	is((sql_state($node, "SELECT envrt_await_execution('$id')"))[0], '08006', "$driver: ... which whoever waits is told");
	wait_until_sql($node, "SELECT state = 'running' AND pid <> $host FROM envrt.stat_driver_host", 'there is another driver host');
	is(await_execution(start($driver, 'echo again'))->{stdout}, "again\n", "$driver: the next one runs");
}

# It ends between the row and what it is told: no other one runs what it may have begun.
{
	my $host = $node->safe_psql('postgres', 'SELECT pid FROM envrt.stat_driver_host');

	$node->safe_psql('postgres', "SELECT envrt.arm_fault_point('execution-before-start')");
	my $id = start('ssh', 'touch again');
	wait_until_sql($node, 'SELECT waiting = 1 FROM envrt.stat_fault_points', 'the scheduler is there');
	kill 'KILL', $host;
	wait_until('the driver host is gone', sub { !kill 0, $host });
	$node->safe_psql('postgres', "SELECT envrt.disarm_fault_point('execution-before-start')");
	await_state($id, 'lost');
	is(await_execution(start('ssh', 'ls again'))->{exit_code}, 2, 'another driver host does not run it');
}

# A backend crashes and the server restarts.
{
	my %id = map { $_ => start($_, 'echo begun; exec sleep 1235.625') } keys %lease;
	my $session = EnvrtSession->new($node);

	await_output($_, 'begun') for values %id;
	$node->safe_psql('postgres', "SELECT envrt.arm_fault_point('execution-before-start')");
	my $begun = start('ssh', 'touch again');
	wait_until_sql($node, 'SELECT waiting = 1 FROM envrt.stat_fault_points', 'the scheduler is there');
	my $queued = start('ssh', 'echo after the crash');
	kill 'KILL', $session->backend;
	wait_until('the server is back', sub { ($node->psql('postgres', 'SELECT 1'))[0] == 0 });
	for my $driver (sort keys %id)
	{
		await_state($id{$driver}, 'lost');
		pass("$driver: a crash of the server loses it");
	}
	wait_until('its processes are gone', sub { !processes_with('1235.625') }, 60);
	is(await_execution($queued)->{stdout}, "after the crash\n", 'what was queued runs then');
	await_state($begun, 'lost');
	is(await_execution(start('ssh', 'ls again'))->{exit_code}, 2, 'what may have been begun does not');
	is($node->safe_psql('postgres', "SELECT count(*) FROM envrt.executions WHERE state IN ('queued', 'running')"), '0', 'none runs for ever');
}

# The extension goes, or its database.
{
	my $begin = "SELECT envrt_start_execution(id, 'sh', ARRAY['-c', 'exec sleep 1235.875']) FROM envrt.environment_leases";

	$node->safe_psql('postgres', 'CREATE DATABASE doomed');
	for my $drop ([ 'DROP EXTENSION envrt', 'doomed' ], [ 'DROP DATABASE doomed', 'postgres' ])
	{
		my ($statement, $database) = @$drop;

		$node->safe_psql('doomed', 'CREATE EXTENSION envrt');
		$node->safe_psql('doomed', "WITH c AS (INSERT INTO envrt.companies (name) VALUES ('Doomed') RETURNING id)"
			  . " INSERT INTO envrt.agents (company_id, name) SELECT id, 'Doomed' FROM c");
		$node->safe_psql('doomed', "INSERT INTO envrt.heartbeat_runs (company_id, agent_id, status) SELECT company_id, id, 'running' FROM envrt.agents");
		$node->safe_psql('doomed', "SELECT envrt_create_environment(id, 'ssh', 'ssh', " . literal(to_json(ssh_config($sshd))) . ') FROM envrt.companies');
		$node->safe_psql('doomed', 'SELECT envrt_acquire_lease(r.company_id, e.id, r.id) FROM envrt.heartbeat_runs r, envrt.environments e');
		$node->safe_psql('doomed', $begin);
		wait_until('the command runs', sub { processes_with('1235.875') == 1 });
		$node->safe_psql('doomed', 'BEGIN; DROP EXTENSION envrt; ROLLBACK');
		$node->safe_psql('doomed', $begin);
		wait_until('a second one runs', sub { processes_with('1235.875') == 2 });
		$node->safe_psql($database, $statement);
		wait_until('all are over', sub { !processes_with('1235.875') }, 10);
		pass("$statement ends what runs");
	}
	is(await_execution(start('ssh', 'echo here'))->{stdout}, "here\n", '... and nothing elsewhere');
}

# Retention
{
	my $session = EnvrtSession->new($node);
	my $locked = await_execution(start('ssh', 'true')) && $node->safe_psql('postgres', 'SELECT id FROM envrt.executions ORDER BY finished_at DESC LIMIT 1');

	# A snapshot has what is deleted stay in the index: it is not to be walked over for each that is to go.
	my $old = EnvrtSession->new($node);
	$node->safe_psql('postgres', "INSERT INTO envrt.executions (system_identifier, database_id, timeline, instance, id, company_id, environment_id, lease_id, command, args, state, finished_at)"
		  . " SELECT system_identifier, database_id, timeline, instance, gen_random_uuid(), company_id, environment_id, lease_id, 'true', '{}', 'exited', now() - interval '30 days' + n * interval '1 ms'"
		  . " FROM envrt.executions, generate_series(1, 3000) n WHERE id = '$locked'; ANALYZE envrt.executions");
	$old->run('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM envrt.executions');
	my $read = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'executions_finished_idx'";
	my $before = $node->safe_psql('postgres', $read);
	$session->run("BEGIN; SELECT FROM envrt.executions WHERE id = '$locked' FOR UPDATE");
	$node->append_conf('postgresql.conf', "envrt.execution_retention = '1 s'");
	$node->reload;
	wait_until_sql($node, 'SELECT count(*) = 1 FROM envrt.executions', 'all are forgotten but what is locked', 60);
	is($node->safe_psql('postgres', "SELECT count(*) FROM pg_locks WHERE NOT granted"), '0', '... which is not waited for');
	$session->run('COMMIT');
	$old->run('COMMIT');
	my $id = start('ssh', 'echo kept for a second');
	await_output($id, 'kept');
	wait_until_sql($node, "SELECT count(*) = 0 FROM envrt.executions WHERE id = '$id'", 'executions are forgotten');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM envrt.execution_output'), '0', '... with their output');
	wait_until_sql($node, "SELECT n_tup_del > 3000 FROM pg_stat_user_tables WHERE schemaname = 'envrt' AND relname = 'executions'", 'that is in the statistics');
	cmp_ok($node->safe_psql('postgres', $read) - $before, '<', 100000, 'and the index was not read again and again');
}

stop_all();
done_testing();
