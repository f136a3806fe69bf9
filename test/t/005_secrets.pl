# Secrets: what the client sealed is readable nowhere; the master key file is made once and guarded.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use File::Find ();
use IPC::Run ();
use Test::More;
use EnvrtSession;
use EnvrtTest;

my $sshd = EnvrtFixture::Sshd->new->start;
my $node = new_cluster('secrets', conf => <<'CONF');
shared_preload_libraries = 'envrt, pg_stat_statements'
log_statement = all
log_min_duration_statement = 0
log_min_messages = debug1
log_error_verbosity = verbose
log_parameter_max_length_on_error = -1
log_checkpoints = on
wal_level = logical
CONF
my $data = $node->data_dir;

$node->safe_psql('postgres', 'CREATE EXTENSION pg_stat_statements');
my $company = make_company($node);
my $other_company = make_company($node);
my $run = make_run($node, $company);

sub seal
{
	my ($content, $key) = @_;

	$key //= $node->safe_psql('postgres', "SELECT encode(envrt_sealing_key(), 'hex')");
	IPC::Run::run([ build_file('seal'), $key ], '<', \to_json($content), '>', \my $out) or die 'seal failed';
	chomp $out;
	return "'\\x$out'";
}

# The master key file
ok(!-e "$data/pg_envrt/master.key", 'no key file before first use');
my $key = $node->safe_psql('postgres', "SELECT encode(envrt_sealing_key(), 'hex')");
ok(-f "$data/pg_envrt/master.key", 'made at first use');
is(sprintf('%04o', (stat _)[2] & 07777), '0600', 'for its owner alone');
like(EnvrtFixture::slurp("$data/pg_envrt/master.key"), qr/\A[0-9a-f]{64}\n\z/, '64 hexadecimal digits');

# A sealed ssh private key goes all the way to a lease
my $private_key = $sshd->keys->text('user_ed25519');
my $sealed = seal({ companyId => $company, name => 'deploy key', version => 1, value => $private_key });
my $secret = $node->safe_psql('postgres', "SELECT envrt_create_sealed_secret('$company', 'deploy key', $sealed, 'sealed')");
my $reference = { type => 'secret_ref', secretId => $secret, version => 'latest' };
my $environment = make_ssh_environment($node, $company, $sshd, privateKey => undef, privateKeySecretRef => $reference);
is(acquire($node, $company, $environment, $run)->{status}, 'active', 'a sealed key opens an ssh lease');
my $second_key = $sshd->keys->text('user_second');
my $rotated = seal({ companyId => $company, name => 'deploy key', version => 2, value => $second_key });
is($node->safe_psql('postgres', "SELECT envrt_rotate_sealed_secret('$secret', $rotated)"), '2', 'rotated by a sealed value');
is(acquire($node, $company, $environment, $run)->{status}, 'active', 'which is used from then on');

# What was sealed for one thing is of no use for another
sub not_for
{
	my ($name, $sql, $pattern) = @_;
	my ($state, $text) = sql_state($node, $sql);

	is($state, '22023', $name);
	like($text, $pattern, "$name: says why");
	return;
}

not_for('for another company', "SELECT envrt_create_sealed_secret('$other_company', 'deploy key', $sealed)", qr/another company/);
not_for('under another name', "SELECT envrt_create_sealed_secret('$company', 'other', $sealed)", qr/another name/);
not_for('a version again', "SELECT envrt_rotate_sealed_secret('$secret', $rotated)", qr/another version/);
not_for('a first version as a rotation', "SELECT envrt_rotate_sealed_secret('$secret', $sealed)", qr/another version/);
my $stranger = seal({ companyId => $company, name => 'x', version => 1, value => 'v' }, '09' . '00' x 31);
not_for('to another key', "SELECT envrt_create_sealed_secret('$company', 'x', $stranger)", qr/not sealed to this server/);
for my $content ([1], { companyId => $company, name => 'x', version => 1 }, { companyId => $company, name => 'x', version => 1, value => 5 },
	{ companyId => $company, name => 'x', version => 1, value => '' }, { companyId => $company, name => 'x', version => '1', value => 'v' }, {})
{
	is((sql_state($node, "SELECT envrt_create_sealed_secret('$company', 'x', " . seal($content) . ')'))[0], '22023', 'sealed junk: ' . to_json($content));
}

# An error in the middle, a probe, a failing call: none says a word of it.
sql_state($node, "SELECT 1/0 FROM envrt_probe('$environment')");
my $wrong = make_ssh_environment($node, $company, $sshd, privateKey => undef, privateKeySecretRef => $reference, knownHosts => undef);
sql_state($node, "SELECT envrt_acquire_lease('$company', '$wrong', '$run')");
$node->safe_psql('postgres', 'CHECKPOINT; SELECT pg_switch_wal()');
my @lines = grep { length >= 40 && !/-----/ } split /\n/, "$private_key\n$second_key";
cmp_ok(scalar(@lines), '>=', 4, 'key lines to look for');
my @needles = @lines;
push @needles, map { unpack('H*', $_) } @lines;
my %found;
my $searched = 0;

File::Find::find(
	{
		no_chdir => 1,
		wanted => sub {
			return if !-f $_;
			open my $file, '<:raw', $_ or return;
			my $content = do { local $/; <$file> };

			$searched += length $content;
			for my $needle (@needles)
			{
				$found{$_}++ if index($content, $needle) >= 0;
			}
		}
	},
	$data, $node->logfile);
cmp_ok($searched, '>', 20_000_000, 'the whole data directory was searched, WAL and all');
is(join(' ', sort keys %found), '', 'the sealed key is in no log, WAL segment or relation file');
like(EnvrtFixture::slurp($node->logfile), qr/envrt_create_sealed_secret/, 'though the log has the statement');
for my $query (
	'SELECT string_agg(query, chr(10)) FROM pg_stat_statements',
	'SELECT string_agg(query, chr(10)) FROM pg_stat_activity',
	"SELECT string_agg(t::text, chr(10)) FROM (SELECT c::text FROM envrt.stat_calls c UNION ALL SELECT s::text FROM envrt.stat_ssh_sessions s UNION ALL SELECT h::text FROM envrt.stat_driver_host h) t")
{
	my $text = $node->safe_psql('postgres', $query);

	ok(!(grep { index($text, $_) >= 0 } @needles), 'nor in a view');
}
my $host = $node->safe_psql('postgres', 'SELECT pid FROM envrt.stat_driver_host');
my $arguments = EnvrtFixture::slurp("/proc/$host/cmdline");
ok(!(grep { index($arguments, $_) >= 0 } @needles), 'nor in the arguments of the driver host');
# See that the search finds what is there: a value in a plain statement is in the log.
$node->safe_psql('postgres', "SELECT envrt_create_secret('$company', 'plain', 'plain-value-in-a-statement')");
like(EnvrtFixture::slurp($node->logfile), qr/plain-value-in-a-statement/, 'a value that was not sealed is');

# The key replaced, unreadable, gone, come back
sub key_error
{
	my ($name, $pattern) = @_;
	my ($state, $text) = sql_state($node, "SELECT envrt_acquire_lease('$company', '$environment', '$run')");

	is($state, '55000', $name);
	like($text, $pattern, "$name: says so");
	like($text, qr/HINT:  \S/, "$name: and what to do");
	is((sql_state($node, "SELECT envrt_create_secret('$company', 'never', 'x')"))[0], '55000', "$name: nothing can be stored either");
	return;
}

my $file = "$data/pg_envrt/master.key";
my $master = EnvrtFixture::slurp($file);
EnvrtFixture::spew($file, ('0123456789abcdef' x 4) . "\n", 0600);
key_error('another key', qr/holds another key/);
for my $junk ('', "short\n", ('g' x 64) . "\n", substr($master, 0, 64) . "00\n")
{
	EnvrtFixture::spew($file, $junk, 0600);
	key_error('a file that is no key', qr/does not hold a key/);
}
EnvrtFixture::spew($file, $master, 0600);
chmod 0644, $file;
key_error('a key that others can read', qr/can be read by others/);
unlink $file or die $!;
key_error('a key file that is gone', qr/does not exist, and there are secrets under it/);
ok(!-e $file, 'no new one is made');
mkdir $file or die $!;
key_error('a directory in its place', qr/not a regular file|could not/);
rmdir $file or die $!;
{
	# A database without secrets does not make a new key for the others to stumble over.
	$node->safe_psql('postgres', 'CREATE DATABASE fresh');
	$node->safe_psql('fresh', 'CREATE EXTENSION envrt');
	my ($state, $text) = sql_state($node, 'SELECT envrt_sealing_key()', database => 'fresh');
	is($state, '55000', 'another database does not make a new key either');
	like($text, qr/this server had one/, 'and says why');
	ok(!-e $file, 'there is none');
}
EnvrtFixture::spew($file, $master, 0600);
is(acquire($node, $company, $environment, $run)->{status}, 'active', 'restored, everything works again');
is($node->safe_psql('fresh', "SELECT encode(envrt_sealing_key(), 'hex')"), $key, 'one key for all databases of a server');

# A place of one's own for the key
my $elsewhere = temporary_directory() . '/key file';
$node->append_conf('postgresql.conf', "envrt.master_key_file = '$elsewhere'");
$node->reload;
wait_until_sql($node, "SELECT setting <> '' FROM pg_settings WHERE name = 'envrt.master_key_file'");
EnvrtFixture::spew($elsewhere, $master, 0600);
unlink $file;
is(acquire($node, $company, $environment, $run)->{status}, 'active', 'envrt.master_key_file is used');

# Eight at once make one key
$node->safe_psql('postgres', "ALTER SYSTEM RESET envrt.master_key_file");
my $new = new_cluster('first');
# A pair of them has to meet at one moment.
for my $round (1 .. 20)
{
	my @outputs = ('') x 8;
	my @handles = map {
		IPC::Run::start([ 'psql', '-XAtq', '-d', $new->connstr('postgres'), '-c', "SELECT encode(envrt_sealing_key(), 'hex')" ], '>', \$outputs[$_], '2>&1')
	} 0 .. 7;
	IPC::Run::finish($_) for @handles;
	my $one = $new->safe_psql('postgres', "SELECT encode(envrt_sealing_key(), 'hex')");
	is(join('', @outputs), "$one\n" x 8, "eight first uses at once get one key, round $round");
	last if $round == 20;
	unlink map { $new->data_dir . "/pg_envrt/master.key$_" } '', '.fingerprint';
	$new->safe_psql('postgres', 'DELETE FROM envrt.settings');
}
is($new->safe_psql('postgres', "SELECT string_agg(f, ',' ORDER BY f) FROM pg_ls_dir('pg_envrt') f"), 'instance,master.key,master.key.fingerprint',
	'and leave one key file and no temporary one');
is($new->safe_psql('postgres', 'SELECT count(*) FROM envrt.settings'), '1', 'and one fingerprint');

# A key that no transaction has come to an end with, and one that somebody else has made: each database knows of it
$new->safe_psql('postgres', 'CREATE DATABASE second');
$new->safe_psql('second', 'CREATE EXTENSION envrt');
wait_until_sql($new, "SELECT count(*) = 2 FROM envrt.stat_schedulers WHERE state = 'running'");
for my $made ('by a transaction that is rolled back', 'by hand')
{
	my $session = EnvrtSession->new($new);
	my $knows = "SELECT count(*) = 1 FROM envrt.settings WHERE name = 'master_key_fingerprint'";

	unlink map { $new->data_dir . "/pg_envrt/master.key$_" } '', '.fingerprint';
	$new->safe_psql($_, 'DELETE FROM envrt.settings') for 'postgres', 'second';
	EnvrtFixture::spew($new->data_dir . '/pg_envrt/master.key', ('0123456789abcdef' x 4) . "\n", 0600) if $made eq 'by hand';
	is($session->run('BEGIN; SELECT envrt_sealing_key()')->{state}, '00000', "a key that is made $made: used");
	wait_until("the other database to know of a key made $made", sub { $new->safe_psql('second', $knows) eq 't' });
	# Longer than a scheduler waits for a lock at most
	$session->run('SELECT pg_sleep(1.5)');
	is($session->run('ROLLBACK')->{state}, '00000', '... rolled back');
	wait_until_sql($new, $knows, "this database to know of a key made $made");
}
done_testing();
