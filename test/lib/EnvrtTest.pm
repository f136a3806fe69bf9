# What the TAP tests share: a server with envrt preloaded, the fixtures of EnvrtFixture, and rows to
# work with.
#
#   use FindBin;
#   use lib "$FindBin::RealBin/../lib";
#   use EnvrtTest;
#
#   my $node = new_cluster('main');
#   my $sshd = EnvrtFixture::Sshd->new->start;
#   my $company = make_company($node);
#   my $environment = make_ssh_environment($node, $company, $sshd);
#   my $run = make_run($node, $company);
#   my $lease = acquire($node, $company, $environment, $run);
#   stop_all();    # or let the end of the test do it

package EnvrtTest;

use strict;
use warnings;

use Exporter 'import';
use File::Basename qw(dirname);
use JSON::PP ();
use Test::More;

# Where `prove` alone is told nothing: the server's version and its Perl modules are found here.
BEGIN
{
	my ($pg_config) =
	  grep { defined && -x } ($ENV{PG_CONFIG}, '/usr/lib/postgresql/15/bin/pg_config');

	$pg_config //= 'pg_config';
	chomp(my $bindir = `$pg_config --bindir`);
	chomp(my $pgxs = `$pg_config --pgxs`);
	my $src = dirname(dirname($pgxs));

	$ENV{PATH} = "$bindir:$ENV{PATH}";
	$ENV{PG_REGRESS} //= "$src/test/regress/pg_regress";
	$ENV{TESTDIR} //= "$FindBin::RealBin/../../build" if defined $FindBin::RealBin;
	push @INC, "$src/test/perl";
}

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use EnvrtFixture qw(wait_until has_ipv6 has_sandboxes temporary_directory);

our @EXPORT = qw(
  new_cluster wait_until wait_until_sql has_ipv6 has_sandboxes temporary_directory stop_all build_file
  make_company make_agent make_run make_environment make_fake_environment make_ssh_environment
  ssh_config acquire release literal sql_state to_json from_json
);

my @nodes;

# A started server with envrt preloaded and the extension in database postgres.
# Options: conf (text for postgresql.conf), preload (1), extension (1), api (a health server).
sub new_cluster
{
	my ($name, %options) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init(extra => $options{initdb});
	$node->append_conf('postgresql.conf', "shared_preload_libraries = 'envrt'")
	  if $options{preload} // 1;
	$node->append_conf('postgresql.conf',
		'envrt.runtime_api_candidates = ' . literal($options{api}->origin))
	  if $options{api};
	$node->append_conf('postgresql.conf', $options{conf}) if $options{conf};
	$node->start;
	$node->safe_psql('postgres', 'CREATE EXTENSION envrt') if $options{extension} // 1;
	push @nodes, $node;
	return $node;
}

sub stop_all
{
	$_->stop('fast', fail_ok => 1) for @nodes;
	@nodes = ();
	EnvrtFixture::stop_all();
	return;
}

# A program that make builds for the tests, such as bad_sshd.
sub build_file
{
	my ($name) = @_;
	my $file = "$FindBin::RealBin/../../build/$name";

	die "$file is missing: run make for it first\n" if !-x $file;
	return $file;
}

# Text as an SQL literal.  It may end up in a log: nothing that must stay secret.
sub literal
{
	my ($text) = @_;

	return 'NULL' if !defined $text;
	my $escape = $text =~ /\\/ ? 'E' : '';
	$text =~ s/(['\\])/$1$1/g;
	return "$escape'$text'";
}

# Keys in a fixed order, so that a failure reads the same each time.
my $json = JSON::PP->new->canonical->allow_nonref->latin1;

sub to_json
{
	return $json->encode($_[0]);
}

sub from_json
{
	return $json->decode($_[0]);
}

# Waits until a query returns t.
sub wait_until_sql
{
	my ($node, $query, $what, $timeout) = @_;

	return wait_until($what // $query,
		sub { ($node->safe_psql('postgres', $query) // '') eq 't' }, $timeout);
}

# (SQLSTATE, error text) of a statement that fails; ('00000', its output) when it does not.
sub sql_state
{
	my ($node, $sql, %options) = @_;
	my ($status, $stdout, $stderr) = $node->psql(
		$options{database} // 'postgres',
		"\\set VERBOSITY verbose\n$sql",
		on_error_stop => 1,
		%{ $options{psql} // {} });

	return ('00000', $stdout) if $status == 0;
	# A server that is gone has no state of its own to tell.
	return ($1, $stderr) if $stderr =~ /(?:ERROR|FATAL|PANIC):\s+([0-9A-Z]{5}):/;
	return ('', $stderr);
}

my $serial = 0;

sub make_company
{
	my ($node, $name) = @_;

	$name //= 'Company ' . ++$serial;
	return $node->safe_psql('postgres',
		'INSERT INTO envrt.companies (name) VALUES (' . literal($name) . ') RETURNING id');
}

sub make_agent
{
	my ($node, $company, $name) = @_;

	$name //= 'Agent ' . ++$serial;
	return $node->safe_psql('postgres',
		"INSERT INTO envrt.agents (company_id, name) VALUES ('$company', "
		  . literal($name)
		  . ') RETURNING id');
}

# A run of an agent that is made for it.  Options: agent, status (running).
sub make_run
{
	my ($node, $company, %options) = @_;
	my $agent = $options{agent} // make_agent($node, $company);
	my $status = $options{status} // 'running';

	return $node->safe_psql('postgres',
		"INSERT INTO envrt.heartbeat_runs (company_id, agent_id, status, started_at)"
		  . " VALUES ('$company', '$agent', '$status', now()) RETURNING id");
}

# By a plain INSERT: as it is, without validation.  The config is a Perl structure.
sub make_environment
{
	my ($node, $company, $driver, $config, %options) = @_;
	my $name = $options{name} // "$driver " . ++$serial;

	return $node->safe_psql('postgres',
		'INSERT INTO envrt.environments (company_id, name, driver, config, status) VALUES ('
		  . join(', ',
			map { literal($_) } $company, $name, $driver, to_json($config // {}),
			$options{status} // 'active')
		  . ') RETURNING id');
}

sub make_fake_environment
{
	my ($node, $company, %config) = @_;

	return make_environment($node, $company, 'sandbox',
		{ provider => 'fake', image => 'ubuntu:24.04', reuseLease => JSON::PP::false, %config });
}

# The config of an environment on our sshd, with the key in it.  Further pairs replace keys; key
# names one of the fixture's keys.
sub ssh_config
{
	my ($sshd, %config) = @_;
	my $key = delete $config{key} // 'user_ed25519';

	return {
		host => '127.0.0.1',
		port => 0 + $sshd->port,
		username => $sshd->user,
		remoteWorkspacePath => $sshd->{directory} . '/workspace',
		privateKey => $sshd->keys->text($key),
		knownHosts => $sshd->known_hosts,
		%config
	};
}

sub make_ssh_environment
{
	my ($node, $company, $sshd, %config) = @_;
	my $name = delete $config{name} // 'ssh ' . ++$serial;

	return $node->safe_psql('postgres',
		'SELECT id FROM envrt_create_environment('
		  . join(', ',
			map { literal($_) } $company, $name, 'ssh', to_json(ssh_config($sshd, %config)))
		  . ')');
}

# The lease's row as a Perl hash.  Dies when there is none.
sub acquire
{
	my ($node, $company, $environment, $run) = @_;

	return from_json(
		$node->safe_psql('postgres',
			"SELECT to_jsonb(l) FROM envrt_acquire_lease('$company', '$environment', '$run') l"));
}

# The released leases' rows.
sub release
{
	my ($node, $run) = @_;

	return map { from_json($_) } split /\n/,
	  $node->safe_psql('postgres', "SELECT to_jsonb(l) FROM envrt_release_leases('$run') l");
}

1;
