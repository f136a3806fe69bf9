# Commands in leases, from SQL: over ssh and in a bubblewrap sandbox, arguments and bytes as they are,
# secrets in env, limits, and what becomes of a command whose caller goes away.
use strict;
use warnings;

use Encode ();
use FindBin;
use lib "$FindBin::RealBin/../lib";
use MIME::Base64 qw(encode_base64 decode_base64);
use Test::More;
use EnvrtTest;

my $sandboxes = temporary_directory();
my $sshd = EnvrtFixture::Sshd->new->start;
my $node = new_cluster('execute',
	conf => "envrt.sandbox_directory = '$sandboxes'\nenvrt.sandbox_on_data_filesystem = on\nenvrt.max_output = '64 kB'\n");
my $company = make_company($node);
my %environment = (ssh => make_ssh_environment($node, $company, $sshd));

# Where the machine lets nobody make namespaces, what is left is the SSH host.
$environment{sandbox} = make_environment($node, $company, 'sandbox', { provider => 'bubblewrap' }) if has_sandboxes();
my %lease;
my $run = make_run($node, $company);

for my $driver (sort keys %environment)
{
	$lease{$driver} = acquire($node, $company, $environment{$driver}, $run)->{id};
}
is($node->safe_psql('postgres', "SELECT provider_lease_id FROM envrt.environment_leases WHERE id = '$lease{sandbox}'"),
	"sandbox://bubblewrap/$lease{sandbox}", 'a sandbox is named by its lease')
  if has_sandboxes();

# The result as a Perl hash.  Arguments: the lease, the command, then named ones of the function as SQL.
sub execute
{
	my ($lease, $command, %arguments) = @_;
	my $more = join '', map { ", $_ => $arguments{$_}" } sort keys %arguments;

	return from_json($node->safe_psql('postgres',
			"SELECT to_jsonb(e) FROM envrt_execute('$lease', " . literal($command) . "$more) e"));
}

sub array
{
	return "ARRAY[" . join(', ', map { literal($_) } @_) . "]::text[]";
}

# Whose row of the lease names the sandbox of another company, still is in its own.
if (has_sandboxes())
{
	my $others = make_company($node);
	my $their_run = make_run($node, $others);
	my $theirs = acquire($node, $others, make_environment($node, $others, 'sandbox', { provider => 'bubblewrap' }), $their_run)->{id};
	my ($name, $metadata) = split /\|/, $node->safe_psql('postgres', "SELECT provider_lease_id, metadata FROM envrt.environment_leases WHERE id = '$lease{sandbox}'");
	my $write = sub { return $node->safe_psql('postgres', "UPDATE envrt.environment_leases SET $_[0] WHERE id = '$lease{sandbox}'") };

	execute($theirs, 'touch', args => array('theirs'));
	execute($lease{sandbox}, 'touch', args => array('ours'));
	$write->("provider_lease_id = 'sandbox://bubblewrap/$theirs'");
	is(execute($lease{sandbox}, 'ls')->{stdout}, "ours\n", 'the sandbox is that of the ledger, whatever the row of the lease says');
	$write->(q(metadata = metadata || '{"remoteCwd": "/tmp"}'));
	is(execute($lease{sandbox}, 'ls')->{stdout}, "ours\n", '... and so is what is known of it');
	$write->("provider_lease_id = '$name', metadata = " . literal($metadata));
	execute($lease{sandbox}, 'rm', args => array('ours'));
	release($node, $their_run);
	$node->safe_psql('postgres', "SELECT envrt_await_cleanup('$theirs')");
}

for my $driver (sort keys %lease)
{
	my $lease = $lease{$driver};
	my $result = execute($lease, 'echo', args => array('a b', '', '-n', q{it's "quoted"}));

	is_deeply([ @$result{qw(exit_code signal timed_out stdout stderr)} ], [ 0, undef, JSON::PP::false, qq{a b  -n it's "quoted"\n}, '' ], "$driver: a command and its arguments")
	  or diag explain $result;
	$result = execute($lease, 'sh', args => array('-c', 'echo out; echo err >&2; exit 3'));
	is_deeply([ @$result{qw(exit_code stdout stderr)} ], [ 3, "out\n", "err\n" ], "$driver: exit code and both streams");
	$result = execute($lease, 'sh', args => array('-c', 'kill -KILL $$'));
	is_deeply([ @$result{qw(exit_code signal)} ], [ undef, 'SIGKILL' ], "$driver: ended by a signal");
	$result = execute($lease, 'cat', stdin => q{E'first\nsecond'});
	is($result->{stdout}, "first\nsecond", "$driver: stdin");
	$result = execute($lease, 'pwd', cwd => "'/tmp'");
	is($result->{stdout}, "/tmp\n", "$driver: cwd");
	is((sql_state($node, "SELECT envrt_execute('$lease', 'true', cwd => '/no/such/place')"))[0], '22023', "$driver: a cwd that is not there");
	$result = execute($lease, '/no/such/program');
	is($result->{exit_code}, 127, "$driver: a program that is not there is a row");
	isnt($result->{stderr}, '', "$driver: which says so");
	$result = execute($lease, 'sh', args => array('-c', 'echo "$A,$B"'), env => q{'{"A": "x y", "B": "$(id)\nz"}'});
	is($result->{stdout}, "x y,\$(id)\nz\n", "$driver: env");
	my ($state, $message) = sql_state($node, "SELECT envrt_execute('$lease', 'true', env => '{\"BAD KEY\": \"x\"}')");
	is($state, '22023', "$driver: a name that is none");
	like($message, qr/Invalid environment variable key: BAD KEY/, "$driver: is named");
	is((sql_state($node, "SELECT envrt_execute('$lease', 'true', env => '{\"A\": 1}')"))[0], '22023', "$driver: a value that is none");

	# Limits
	$result = execute($lease, 'sh', args => array('-c', 'echo begun; sleep 60'), timeout => "'300 ms'");
	ok($result->{timed_out}, "$driver: a command that takes too long");
	is($result->{stdout}, "begun\n", "$driver: with what it had said");
	$result = execute($lease, 'sh', args => array('-c', q{trap '' TERM; sleep 60 & wait; sleep 60}), timeout => "'300 ms'");
	ok($result->{timed_out}, "$driver: one that ignores SIGTERM");
	$result = execute($lease, 'sh', args => array('-c', 'head -c 3000000 /dev/zero | tr "\\0" x; echo end >&2'));
	is(length $result->{stdout}, 65536, "$driver: output is capped");
	ok($result->{metadata}{stdoutTruncated}, "$driver: which is said");
	is($result->{stderr}, "end\n", "$driver: and the command goes on");
	is($result->{metadata}{stdoutBytes}, 3000000, "$driver: with how much it was");

	# Cancel
	my ($code) = sql_state($node, "SET statement_timeout = '300 ms'; SELECT envrt_execute('$lease', 'sleep', ARRAY['61'])");
	is($code, '57014', "$driver: cancelled by statement_timeout");
	is(execute($lease, 'echo', args => array('next'))->{stdout}, "next\n", "$driver: and the next command runs");

	# Bytes
	my $bytes = join '', map { chr } 0 .. 255;
	my $answer = $node->safe_psql('postgres', sprintf q{SELECT encode(stdout, 'base64') FROM envrt_execute_raw('%s', 'cat', stdin => decode('%s', 'base64'))},
		$lease, encode_base64($bytes, ''));
	is(decode_base64($answer), $bytes, "$driver: every byte through stdin and stdout");
	is(execute($lease, 'printf', args => array('a\\0b\\377c'))->{stdout}, Encode::encode('UTF-8', "a\x{fffd}b\x{fffd}c"), "$driver: as text, what is no text is replaced");
}

# How long it took.
for my $driver (sort keys %lease)
{
	my $latency = from_json($node->safe_psql('postgres',
			"SELECT to_jsonb(l) FROM envrt.stat_latency l WHERE method = 'environmentExecute' AND driver = '" . ($driver eq 'ssh' ? 'ssh' : 'bubblewrap') . "'"));

	# One had no place to be, one a name that is none, and one was cancelled: after it had begun, unless the machine is slow.
	cmp_ok($latency->{calls}, '>=', 15, "$driver: calls are counted");
	ok($latency->{errors} == 3 || $latency->{errors} == 2, "$driver: errors, too") or diag explain $latency;
	my @order = @$latency{qw(p50 p95 p99 max total)};
	is_deeply([ sort { $a <=> $b } @order ], \@order, "$driver: and timed") or diag explain $latency;
	cmp_ok($latency->{max}, '>=', 300, "$driver: in milliseconds");
}

# Secrets in env: a right of its own
my $secret = $node->safe_psql('postgres', "SELECT envrt_create_secret('$company', 'token', 'top-secret-value')");
my $reference = qq({"TOKEN": {"type": "secret_ref", "secretId": "$secret", "version": "latest"}});

$node->safe_psql('postgres', q{
	CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA envrt TO app;
	GRANT SELECT ON envrt.companies, envrt.environments, envrt.heartbeat_runs, envrt.environment_leases, envrt.company_secrets TO app;
	GRANT EXECUTE ON FUNCTION envrt_execute TO app});
for my $driver (sort keys %lease)
{
	my @as_app = (psql => { extra_params => [ '-U', 'app' ] });

	is(execute($lease{$driver}, 'sh', args => array('-c', 'echo $TOKEN'), env => "'$reference'")->{stdout}, "top-secret-value\n", "$driver: a secret in env");
	is((sql_state($node, "SELECT envrt_execute('$lease{$driver}', 'true', env => '$reference')", @as_app))[0], '42501', "$driver: not without the right to it");
	is((sql_state($node, "SELECT envrt_execute('$lease{$driver}', 'true')", @as_app))[0], '00000', "$driver: which other commands don't need");
	# Nowhere in the arguments of a process while it is used.
	my $found = $node->safe_psql('postgres', "SELECT stdout FROM envrt_execute('$lease{$driver}', 'sh', ARRAY['-c', 'cat /proc/[0-9]*/cmdline | tr \"\\\\0\" \" \"'], env => '$reference')");
	unlike($found, qr/top-secret-value/, "$driver: in no process's arguments");
}
my $log = PostgreSQL::Test::Utils::slurp_file($node->logfile);
unlike($log =~ s/^.*envrt_create_secret.*$//mgr, qr/top-secret-value/, 'and not in the log');

SKIP:
{
	skip 'bubblewrap can make no namespaces for this user here', 1 if !has_sandboxes();

	# What a sandbox can't reach
	{
		my $data = $node->data_dir;
		my $lease = $lease{sandbox};

		isnt(execute($lease, 'cat', args => array("$data/postgresql.conf"))->{exit_code}, 0, 'the data directory is out of reach');
		isnt(execute($lease, 'ls', args => array($sandboxes))->{exit_code}, 0, 'other workspaces too');
		is(execute($lease, 'sh', args => array('-c', 'cat /proc/net/dev | grep -c -v -e face -e Inter -e lo:'))->{stdout}, "0\n", 'no network');
		is(execute($lease, 'sh', args => array('-c', 'echo kept > file && cat file'))->{stdout}, "kept\n", 'its workspace can be written');
		is(execute($lease, 'cat', args => array('/workspace/file'))->{stdout}, "kept\n", 'and outlives the command');
		my $pid = $node->safe_psql('postgres', 'SELECT pg_backend_pid()');
		is(execute($lease, 'sh', args => array('-c', 'ls -d /proc/[0-9]* | wc -l'))->{stdout} <= 5 ? 'few' : 'many', 'few', 'the host\'s processes are not there');
		isnt(execute($lease, 'sh', args => array('-c', 'echo x > /etc/x'))->{exit_code}, 0, 'nothing else can be written');
	}

	# The end of the lease is the end of the sandbox.
	ok(-d "$sandboxes/leases/$lease{sandbox}", 'the sandbox has a folder');
	release($node, $run);
	is($node->safe_psql('postgres', "SELECT envrt_await_cleanup('$lease{sandbox}')"), 'success', 'cleaned up');
	ok(!-e "$sandboxes/leases/$lease{sandbox}", 'the folder goes with the lease');
	is((sql_state($node, "SELECT envrt_execute('$lease{sandbox}', 'true')"))[0], '55000', 'no command in a lease that has ended');

	like((sql_state($node, "SELECT envrt_destroy_lease('$lease{sandbox}')"))[1], qr/HINT:  It has ended already/, 'nothing is left to destroy');

	# What is wrong with a probe stands in its row.
	my $probe = from_json($node->safe_psql('postgres', "SELECT to_jsonb(p) FROM envrt_probe_config('$company', 'sandbox', '{\"provider\": \"bubblewrap\", \"image\": \"none\"}') p"));
	is_deeply([ $probe->{ok}, $probe->{details}{sqlstate} ], [ JSON::PP::false, '22023' ], 'a probe of an image that does not exist');
	like($probe->{details}{hint}, qr/^An image is a folder/, '... says what to do');

	# Rolled back: no sandbox is left
	my $rolled_back = $node->safe_psql('postgres', "BEGIN; SELECT id FROM envrt_acquire_lease('$company', '$environment{sandbox}', '$run'); ROLLBACK");
	wait_until_sql($node, 'SELECT count(*) = 0 FROM envrt.provider_leases', 'the ledger to be empty');
	ok(!-e "$sandboxes/leases/$rolled_back", 'a rollback undoes the sandbox');
}

done_testing();
