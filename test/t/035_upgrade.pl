# pg_upgrade, by default to the same version: what was made outside is left alone until somebody says so, and no other
# master key is made while the old one is not in its place.
#
# ENVRT_OLD_INSTALLATION is the installation to upgrade from (bin/ is in it), with envrt installed there as well.
use strict;
use warnings;

use Cwd qw(abs_path);
use FindBin;
use lib "$FindBin::RealBin/../lib";
use File::Basename qw(dirname);
use File::Copy qw(copy);
use IPC::Run ();
use Test::More;
use EnvrtFixture qw(temporary_directory);
use EnvrtTest;
use EnvrtProvider;
use PostgreSQL::Test::Utils qw(slurp_file);

chomp(my $new_bin = `pg_config --bindir`);
my $old_installation = $ENV{ENVRT_OLD_INSTALLATION} // dirname($new_bin);
my $provider = EnvrtProvider->new;

sub cluster
{
	my ($name, @options) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name, @options);

	$node->init(extra => [ '--locale=C', '--encoding=UTF8' ]);
	$node->append_conf('postgresql.conf', "shared_preload_libraries = 'envrt'\n" . EnvrtProvider::conf());
	return $node;
}

my $old = cluster('old', install_path => $old_installation);
my $new = cluster('new');
my @databases = qw(postgres second);

sub schedulers_run
{
	my ($node) = @_;

	return wait_until_sql($node, "SELECT count(*) = 2 FROM envrt.stat_schedulers WHERE state = 'running'");
}

$old->start;
$old->safe_psql('postgres', 'CREATE DATABASE second');
$old->safe_psql($_, 'CREATE EXTENSION envrt') for @databases;
schedulers_run($old);
my $company = make_company($old);
my $secret = $old->safe_psql('postgres', "SELECT envrt_create_secret('$company', 'kept', 'value')");
# The other one has none, and knows of the key all the same.
wait_until('the second database to know of the key', sub { $old->safe_psql('second', "SELECT count(*) FROM envrt.settings WHERE name = 'master_key_fingerprint'") eq '1' });
my $agent = make_agent($old, $company);
my @runs = map { make_run($old, $company, agent => $agent) } 1 .. 2;
my $reusable = $provider->make_environment($old, $company, reuseLease => JSON::PP::true);
my $held = acquire($old, $company, $provider->make_environment($old, $company), $runs[0]);
my $idle = acquire($old, $company, $reusable, $runs[1]);
release($old, $runs[1]);
wait_until_sql($old, "SELECT count(*) = 1 FROM envrt.stat_cleanup WHERE state = 'idle'");
my %before = map { $_ => $provider->count($_) } qw(create resume release destroy);
$old->stop;

{
	# Some versions write where they are called.
	my $directory = temporary_directory();
	my ($out, $err) = ('', '');

	ok(IPC::Run::run([ 'pg_upgrade', '-b', "$old_installation/bin", '-B', $new_bin, '-d', abs_path($old->data_dir), '-D', abs_path($new->data_dir), '-s', $new->host, '-p', $old->port, '-P', $new->port ],
		'>', \$out, '2>', \$err, init => sub { chdir $directory or die $! }), 'pg_upgrade') or do
	{
		diag $out, $err, `find '@{[ abs_path($new->data_dir) ]}/pg_upgrade_output.d' '$directory' -name '*.txt' -o -name '*.log' | xargs tail -n 30`;
		BAIL_OUT('pg_upgrade failed');
	};
}
is_deeply({ map { $_ => $provider->count($_) } keys %before }, \%before, 'it asks no provider for anything');

# Without the old key
$new->start;
schedulers_run($new);
$new->safe_psql('second', "INSERT INTO envrt.companies (id, name) VALUES ('$company', 'the same')");
for my $call ([ 'second', "SELECT envrt_create_secret('$company', 'new', 'value')" ], [ 'postgres', "SELECT envrt_create_secret('$company', 'new', 'value')" ],
	[ 'postgres', "SELECT envrt_rotate_secret('$secret', 'other')" ], [ 'postgres', 'SELECT envrt_sealing_key()' ])
{
	my ($database, $sql) = @$call;
	my ($state, $message) = sql_state($new, $sql, database => $database);

	is($state, '55000', "$database: $sql without the old key");
	like($message, qr{master key file "pg_envrt/master\.key" does not exist.*HINT:.*After pg_upgrade, copy pg_envrt/master\.key from the old cluster}s, '... and what is to be done');
}
ok(!-e $new->data_dir . '/pg_envrt/master.key', 'no other key is made');
my $log = slurp_file($new->logfile);
is(scalar(() = $log =~ /WARNING:  the master key file "pg_envrt\/master\.key" does not exist\n/g), 2, 'the log says it, once for each database');

# With it
copy($old->data_dir . '/pg_envrt/master.key', $new->data_dir . '/pg_envrt/master.key') or die $!;
chmod 0600, $new->data_dir . '/pg_envrt/master.key';
is($new->safe_psql('postgres', "SELECT envrt_rotate_secret('$secret', 'other')"), '2', 'with the old key a secret is rotated');
like($new->safe_psql('second', "SELECT envrt_create_secret('$company', 'new', 'value')"), qr/^[0-9a-f-]{36}$/, 'and another one made in the other database');

# The ledger
is($new->safe_psql('postgres', 'SELECT state, made_by FROM envrt.stat_cleanup ORDER BY state'), "held|foreign\nidle|foreign", 'what was made outside is of another server');
like($log, qr/HINT: [^\n]*envrt_claim_instance/, 'which the log says');
is_deeply({ map { $_ => $provider->count($_) } keys %before }, \%before, 'and left alone');
is($new->safe_psql('postgres', "SELECT envrt_claim_instance('take_over')"), '2', 'until it is taken over');
is(acquire($new, $company, $reusable, $runs[1])->{provider_lease_id}, $idle->{provider_lease_id}, 'what was idle is resumed by the next lease');
release($new, $_) for @runs;
is($new->safe_psql('postgres', "SELECT envrt_await_cleanup('$held->{id}')"), 'success', 'and what is released is cleaned up');
is_deeply([ $provider->settled($new) ], [], 'nothing is lost');
$new->stop;
done_testing();
