# What the tests of sandboxes share.

package SandboxTest;

use strict;
use warnings;

use Exporter 'import';
use JSON::PP ();
use EnvrtFixture qw(has_sandboxes);
use HostTest;
use Test::More;

# Users of this module test sandboxes and nothing else.
plan skip_all => 'bubblewrap can make no namespaces for this user here' if !has_sandboxes();

our @EXPORT = qw(lease_id provider_id sandbox_params acquire execute run_perl output_of processes_with
  children_of is_gone in_use);

my $count = 0;

# A uuid that was not used yet.
sub lease_id
{
	return sprintf '%08x-0000-4000-8000-%012x', $$, ++$count;
}

sub provider_id
{
	return "sandbox://bubblewrap/$_[0]";
}

# Params of a call about a lease.
sub sandbox_params
{
	my ($id, %other) = @_;

	return {
		driverKey => 'bubblewrap',
		companyId => 'company-1',
		environmentId => 'environment-1',
		config => { provider => 'bubblewrap', %{ delete $other{config} // {} } },
		leaseId => $id,
		%other
	};
}

sub acquire
{
	my ($client, $id, %other) = @_;

	return $client->call('environmentAcquireLease', sandbox_params($id, %other));
}

sub execute_params
{
	my ($id, $command, %other) = @_;
	my ($program, @arguments) = @$command;

	return sandbox_params(
		$id,
		lease => { providerLeaseId => provider_id($id), metadata => { remoteCwd => '/workspace' } },
		command => $program,
		args => \@arguments,
		%other);
}

# The result of a command, a list, in a lease.
sub execute
{
	my ($client, $id, $command, %other) = @_;
	my $answer = $client->call('environmentExecute', execute_params($id, $command, %other), 120);

	diag(JSON::PP->new->encode($answer)) if !$answer->{result};
	return $answer->{result};
}

# The same of a Perl program.
sub run_perl
{
	my ($client, $id, $program, %other) = @_;
	my @arguments = @{ delete $other{arguments} // [] };

	return execute($client, $id, [ 'perl', '-e', $program, '--', @arguments ], %other);
}

# What a shell script writes.
sub output_of
{
	my ($client, $id, $script, %other) = @_;

	return execute($client, $id, [ 'sh', '-c', $script ], %other)->{stdout};
}

# Pids of processes with this among their arguments.
sub processes_with
{
	my ($text) = @_;
	my @found;

	for my $file (glob '/proc/[0-9]*/cmdline')
	{
		my ($pid) = $file =~ /(\d+)/;
		open my $handle, '<', $file or next;
		my $line = do { local $/; readline $handle } // '';
		push @found, $pid if $pid != $$ && index("\0$line", "\0$text\0") >= 0;
	}
	return @found;
}

# Pids of a process's children.
sub children_of
{
	my ($parent) = @_;

	return grep { (eval { slurp("/proc/$_/stat") } // '') =~ /^\d+ \(.*\) \S (\d+)/s && $1 == $parent }
	  map { m{(\d+)} } glob '/proc/[0-9]*';
}

sub is_gone
{
	my ($text, $name) = @_;
	my $gone = eval { wait_until("$text is gone", sub { !processes_with($text) }); 1 };

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok($gone, $name);
}

# Folders below a sandbox directory that stand for leases or what is left of them.
sub in_use
{
	my ($directory) = @_;

	return map { s{.*/}{}r } glob "$directory/leases/* $directory/trash/*";
}

1;
