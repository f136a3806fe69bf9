#!/usr/bin/perl
# Many short commands from many clients at a time against each of OpenSSH, dropbear and tinyssh: what a
# second try would have mended is no failure.  `make check-ssh-servers` runs it.
#
# ENVRT_COMMANDS (10000) commands a server, ENVRT_CLIENTS (20), ENVRT_MINUTES (40) at most a server,
# ENVRT_SERVERS (openssh dropbear tinyssh).

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use HostTest;
use EnvrtOtherSshd;
use Test::More;

my $commands = $ENV{ENVRT_COMMANDS} // 10000;
my $clients = $ENV{ENVRT_CLIENTS} // 20;
my $limit = 60 * ($ENV{ENVRT_MINUTES} // 40);

# One client's share: what went wrong, a line each.
sub run_commands
{
	my ($host, $server, $from, $to, $end) = @_;
	my $client = $host->connect;
	my $base = HostTest::request(ssh_config($server));
	my @wrong;

	for my $number ($from .. $to)
	{
		my $left = $end - time;

		if ($left <= 0)
		{
			push @wrong, ($to - $number + 1) . " commands were not run in time\n";
			last;
		}
		my $answer = $client->call('environmentExecute',
			{
				%$base,
				command => 'sh',
				args => [ '-c', "echo $number; exit 7" ],
				lease => { providerLeaseId => 'ssh://x', metadata => { remoteCwd => "$server->{directory}/home" } },
				limits => { callMs => 60000, connectMs => 60000 }
			}, $left + 1);
		my $result = $answer->{result};

		next if $result && ($result->{exitCode} // -1) == 7 && $result->{stdout} eq "$number\n" && $result->{stderr} eq '';
		push @wrong, "command $number: " . JSON::PP->new->canonical->encode($answer) . "\n";
	}
	return @wrong;
}

for my $kind (split ' ', $ENV{ENVRT_SERVERS} // 'openssh dropbear tinyssh')
{
	SKIP:
	{
		skip "$kind can't be run here", 1 if !EnvrtOtherSshd::is_available($kind);
		my $server = EnvrtOtherSshd->new($kind)->start;
		my $host = start_host(control => {});
		my $directory = temporary_directory();
		my $begin = time;
		my @pids;

		for my $client (0 .. $clients - 1)
		{
			push @pids, EnvrtFixture::spawn(
				sub {
					my @wrong = eval {
						run_commands($host, $server, 1 + int($commands * $client / $clients), int($commands * ($client + 1) / $clients), $begin + $limit);
					};

					push @wrong, "client $client: $@" if $@;
					spew("$directory/$client", join '', @wrong);
				});
		}
		waitpid $_, 0 for @pids;
		my @wrong = map { -e "$directory/$_" ? split /^/, slurp("$directory/$_") : "client $_ ended early\n" } 0 .. $clients - 1;

		is(@wrong, 0, "$kind: commands that failed");
		diag(@wrong[ 0 .. ($#wrong > 9 ? 9 : $#wrong) ]) if @wrong;
		diag(sprintf '%s: %d commands of %d clients in %.0f s, %d failed', $kind, $commands, $clients, time - $begin, scalar @wrong);
		$host->stop;
		$server->stop;
	}
}

done_testing();
