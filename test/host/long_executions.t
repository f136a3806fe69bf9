#!/usr/bin/perl
# Commands that go on whoever asked for them goes away: the host keeps what they write until it is
# acknowledged.  The bubblewrap driver runs them here, and a plugin.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use HostTest;
use SandboxTest;
use JSON::PP ();
use MIME::Base64;
use Test::More;

my $directory = temporary_directory();
my $host = start_host(sandboxes => $directory, control => {});
my $client = $host->connect;
my $lease = lease_id();

acquire($client, $lease);

# Starts a shell command; returns its id.
sub start
{
	my ($script, %other) = @_;
	my $id = lease_id();
	my $answer = $client->call('envrt/executionStart',
		SandboxTest::execute_params($lease, [ 'sh', '-c', $script ], executionId => $id, timeoutMs => 600000, %other));

	ok(!$answer->{error}, "start: $script") or diag(JSON::PP->new->encode($answer));
	return $id;
}

sub read_execution
{
	my ($from, $id, $after, $wait) = @_;

	return $from->call('envrt/executionRead', { executionId => $id, after => $after, waitMs => $wait // 30000 });
}

# Reads to the end; returns the text, the end and the last position.
sub read_all
{
	my ($id, $position) = @_;
	my $text = '';

	$position //= 0;
	while (1)
	{
		my $result = read_execution($client, $id, $position)->{result} or return ($text, undef, $position);
		for my $piece (@{ $result->{pieces} })
		{
			is($piece->{position}, $position + 1, 'a piece is the next') if $piece->{position} != $position + 1;
			$position = $piece->{position};
			$text .= decode_base64($piece->{dataBase64});
		}
		return ($text, $result->{end}, $position) if $result->{end};
	}
}

# The host's own view of an execution.
sub described
{
	my ($id) = @_;
	my ($row) = grep { $_->{executionId} eq $id } @{ $host->stats->{executions} };

	return $row;
}

#######################################################################
# Output comes while it runs, and the end comes last
#######################################################################
{
	my $id = start('echo one; sleep 0.2; echo two >&2; exit 3', stdin => '');

	my ($text, $end) = read_all($id);

	like($text, qr/one\n.*two\n/s, 'all of its output, again from the start');
	is($end->{result}{exitCode}, 3, 'its end');
	is_deeply([ sort keys %{ $end->{result}{metadata} } ], [qw(durationMs stderrBytes stdoutBytes)], '... counts');
	is_deeply($client->call('envrt/executionForget', { executionId => $id })->{result}, undef, 'it is forgotten');
	is_error(read_execution($client, $id, 0), '42704', qr/not known/, '... indeed');
}
{
	my $id = start('echo first; while ! test -e go; do sleep 0.02; done; echo second');
	my $result = read_execution($client, $id, 0)->{result};

	is(decode_base64($result->{pieces}[0]{dataBase64}), "first\n", 'output comes before the end');
	is($result->{end}, undef, '... which is not there yet');
	is_deeply(read_execution($client, $id, 1, 50)->{result}, { pieces => [], end => undef }, 'waiting has an end');
	is_error($client->call('envrt/executionForget', { executionId => $id }), '55000', qr/not ended/, 'it is not to be forgotten');

	# Whoever started it goes away; another one reads on.
	my $other = $host->connect;
	$client->close;
	spew("$directory/leases/$lease/workspace/go", '');
	$result = read_execution($other, $id, 1)->{result};
	is(decode_base64($result->{pieces}[0]{dataBase64}), "second\n", 'it outlives the connection');
	$client = $other;
	my ($text, $end) = read_all($id, 1);
	is($text, "second\n", 'what was acknowledged is gone, the rest is kept');
	is($end->{result}{exitCode}, 0, '... and the end');
	unlink "$directory/leases/$lease/workspace/go";
}

#######################################################################
# Starting twice is starting once
#######################################################################
{
	my $id = start('echo x >> count; cat count');
	my $again = $client->call('envrt/executionStart',
		SandboxTest::execute_params($lease, [ 'sh', '-c', 'echo y >> count' ], executionId => $id));

	ok(!$again->{error}, 'a second start');
	my ($text) = read_all($id);
	is($text, "x\n", '... does nothing');
	is_error($client->call('envrt/executionStart', SandboxTest::execute_params($lease, ['true'], executionId => 'x')),
		'22023', qr/uuid/, 'an id that is none');
	is_error($client->call('envrt/executionStart', { executionId => lease_id() }), '22023', qr/driverKey/, 'a call that says nothing');
}

#######################################################################
# Cancel, and the lease's end
#######################################################################
{
	my $id = start('echo begun; exec sleep 1000.125');

	is(decode_base64(read_execution($client, $id, 0)->{result}{pieces}[0]{dataBase64}), "begun\n", 'it runs');
	ok(processes_with('1000.125'), '... as a process');
	is_deeply($client->call('envrt/executionCancel', { executionId => $id })->{result}, undef, 'a cancel');
	my $result = read_execution($client, $id, 1)->{result};
	is($result->{end}{error}{data}{sqlstate}, '57014', '... is its end');
	wait_until('the process to end', sub { !processes_with('1000.125') });
	is_deeply($client->call('envrt/executionCancel', { executionId => $id })->{result}, undef, 'a second cancel is none');
	is_error($client->call('envrt/executionCancel', { executionId => lease_id() }), '42704', qr/not known/, 'one of nothing');
}
{
	my $other_lease = lease_id();
	my $id = lease_id();

	acquire($client, $other_lease);
	$client->call('envrt/executionStart',
		SandboxTest::execute_params($other_lease, [ 'sleep', '1000.25' ], executionId => $id, timeoutMs => 600000));
	wait_until('it to run', sub { processes_with('1000.25') });
	$client->call('environmentReleaseLease', sandbox_params($other_lease, providerLeaseId => provider_id($other_lease)));
	is(read_execution($client, $id, 0)->{result}{end}{error}{data}{sqlstate}, '55000', 'the end of the lease is its end');
	ok(!processes_with('1000.25'), '... and its process is gone');
}

#######################################################################
# Reads are not counted among the calls, of which there are only so many
#######################################################################
{
	my $other = start_host(sandboxes => temporary_directory(), control => { maxCalls => 1 });
	my $reader = $other->connect;
	my $first = lease_id();
	my $id = lease_id();

	acquire($reader, $first);
	ok(!$reader->call('envrt/executionStart', SandboxTest::execute_params($first, [ 'sh', '-c', 'echo out; exec sleep 1000.375' ], executionId => $id, timeoutMs => 600000))->{error}, 'one execution');
	is_error($reader->call('envrt/executionStart', SandboxTest::execute_params($first, ['true'], executionId => lease_id())), '53400', qr/busy/, '... and no room for another');
	is(decode_base64(read_execution($reader, $id, 0)->{result}{pieces}[0]{dataBase64}), "out\n", '... but for whoever reads');
	$reader->call('envrt/executionCancel', { executionId => $id });
	$other->stop;
}

#######################################################################
# What nobody takes makes the command wait, and memory stays flat
#######################################################################
{
	my $id = start('head -c 5000000 /dev/zero; echo done >&2');

	wait_until('it to be behind', sub { (described($id)->{keptBytes} // 0) > 1024 * 1024 });
	my $kept = described($id)->{keptBytes};
	ok($kept < 3 * 1024 * 1024, "no more than a little is kept ($kept)");
	ok(described($id)->{running}, '... and the command waits');
	my ($text, $end) = read_all($id);
	is(length $text, 5000005, 'all of it comes');
	is($end->{result}{metadata}{stdoutBytes}, 5000000, '... and is counted');
}
{
	# Who takes a part of it at the very moment when it begins to wait and its last piece is still being filled.
	my $id = start('while ! test -e full; do sleep 0.01; done; rm full; printf x; exec head -c 2000000 /dev/zero');

	spew("$directory/leases/$lease/workspace/full", '');
	1 while (described($id)->{keptBytes} // 0) <= 1024 * 1024;
	read_execution($client, $id, 5);
	my ($text, $end) = eval {
		local $SIG{ALRM} = sub { die "it does not go on\n" };
		alarm 20;
		my @all = read_all($id, 5);
		alarm 0;
		@all;
	};
	is($end->{result}{metadata}{stdoutBytes}, 2000001, 'a command that has waited goes on, whenever that was');
	$client->call('envrt/executionCancel', { executionId => $id }) if !$end;
}

#######################################################################
# Characters are not cut in two
#######################################################################
{
	my $id = start(q(printf '\303'; sleep 0.3; printf '\244\n'; printf '\342\202'; sleep 0.3; printf '\254'; sleep 0.3; printf '\377'));
	my ($position, @pieces) = (0);

	while (1)
	{
		my $result = read_execution($client, $id, $position)->{result};
		push @pieces, map { decode_base64($_->{dataBase64}) } @{ $result->{pieces} };
		$position = $result->{pieces}[-1]{position} if @{ $result->{pieces} };
		last if $result->{end};
	}
	is(join('|', map { unpack 'H*', $_ } @pieces), 'c3a40a|e282ac|ff', 'pieces are whole characters, where there are any');
}

{
	my $id = start(q(printf '\303'; sleep 0.3; echo x >&2; sleep 0.3; printf '\244'; sleep 0.3; printf '\342'; sleep 0.3; printf '\303' >&2));
	my %text = (stdout => '', stderr => '');
	my $position = 0;

	while (1)
	{
		my $result = read_execution($client, $id, $position)->{result};
		for my $piece (@{ $result->{pieces} })
		{
			$text{ $piece->{stream} } .= '|' . unpack 'H*', decode_base64($piece->{dataBase64});
			$position = $piece->{position};
		}
		last if $result->{end};
	}
	is($text{stdout}, '|c3a4|e2', 'the other stream does not cut one either, and what is left at the end comes');
	is($text{stderr}, '|780a|c3', '... on both');
}

#######################################################################
# One reader at a time
#######################################################################
{
	my $id = start('sleep 1000');
	my $other = $host->connect;
	my $number = $other->send_call('envrt/executionRead', { executionId => $id, after => 0, waitMs => 60000 });

	wait_until('a reader to wait', sub { scalar grep { $_->{method} eq 'envrt/executionRead' } @{ $host->stats->{calls} } });
	is_deeply(read_execution($client, $id, 0, 20)->{result}, { pieces => [], end => undef }, 'a second reader');
	is_error($other->answer($number), '57014', qr/somebody else/, '... takes the place of the first');
	$client->call('envrt/executionCancel', { executionId => $id });
}

#######################################################################
# Its database is gone
#######################################################################
{
	my %id = map { $_ => start('echo here; sleep 1000', database => $_) } 5, 6;
	my $ended = start('true', database => 5);
	my $without = start('sleep 1000');
	my $other = $host->connect;
	my $number = $other->send_call('envrt/executionRead', { executionId => $id{5}, after => 1, waitMs => 60000 });

	read_all($ended);
	wait_until('a reader to wait', sub { scalar grep { $_->{method} eq 'envrt/executionRead' } @{ $host->stats->{calls} } });
	is_deeply($host->control('databaseGone', { database => 5 }), { jsonrpc => '2.0', id => 1, result => undef }, 'a database is gone');
	is_error($other->answer($number)->{result}{end}, '57014', qr/cancelled/, '... and what ran for it is cancelled');
	is_error(read_execution($client, $_, 0), '42704', qr/not known/, '... and forgotten') for $id{5}, $ended;
	is(scalar(grep { !described($_)->{running} } $id{6}, $without), 0, '... and nothing else');
	is_error($client->call('databaseGone', { database => 6 }), '42704', qr/no method/, 'who else says so is not heard');
	$client->call('envrt/executionCancel', { executionId => $_ }) for $id{6}, $without;
}

$host->stop;
done_testing();
