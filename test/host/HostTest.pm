# What the driver host's tests share: a host of their own, clients that speak its protocol, and
# misbehaving servers.  Core Perl only.

package HostTest;

use strict;
use warnings;

use Carp qw(croak);
use Exporter 'import';
use FindBin;
use lib "$FindBin::RealBin/../lib";
use EnvrtFixture qw(wait_until temporary_directory slurp spew endless_file);
use JSON::PP ();
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(wait_until temporary_directory slurp spew endless_file time sleep start_host bad_sshd ssh_config
  request is_error elapsed $top);

our $top = "$FindBin::RealBin/../..";
my $json = JSON::PP->new->utf8->canonical;

#######################################################################
# Requests
#######################################################################

# The config for a fixture's sshd; the rest overrides.
sub ssh_config
{
	my ($sshd, %other) = @_;

	return {
		host => '127.0.0.1',
		port => $sshd->port,
		username => $sshd->user,
		remoteWorkspacePath => "$sshd->{directory}/home/workspace",
		privateKey => $sshd->keys->text('user_ed25519'),
		knownHosts => $sshd->known_hosts,
		strictHostKeyChecking => JSON::PP::true,
		%other
	};
}

# Params of a call.  Options: company, candidates, connect, command, probe (milliseconds).
sub request
{
	my ($config, %options) = @_;

	return {
		driverKey => 'ssh',
		companyId => $options{company} // 'company-1',
		environmentId => 'environment-1',
		config => $config,
		apiCandidates => $options{candidates} // [],
		limits => {
			connectMs => $options{connect} // 10000,
			commandMs => $options{command} // 15000,
			apiProbeMs => $options{probe} // 5000
		}
	};
}

# An answer is an error with this SQLSTATE, and its message is like that.
sub is_error
{
	my ($answer, $sqlstate, $message, $name) = @_;
	my $error = $answer->{error} // {};
	my $right = ($error->{data}{sqlstate} // '') eq $sqlstate && ($error->{message} // '') =~ $message;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($right, $name) or diag("expected $sqlstate $message, got ", $json->encode($answer));
	return $right;
}

# Runs code and returns how long it took, in seconds.
sub elapsed
{
	my ($code) = @_;
	my $start = time;

	$code->();
	return time - $start;
}

#######################################################################
# A driver host in a directory of its own
#######################################################################

# Options: control (a hash: settings), unconfigured (don't send them), directory, program, plugins (a list
# of directories), sandboxes (a directory).
sub start_host
{
	my (%options) = @_;
	my $directory = $options{directory} // temporary_directory();
	my $self = bless { directory => $directory, stderr => "$directory/stderr" }, 'HostTest::Host';
	my @arguments = ('--directory', $directory);
	my $theirs;

	push @arguments, map { ('--plugin-path', $_) } @{ $options{plugins} // [] };
	push @arguments, '--sandbox-directory', $options{sandboxes} if $options{sandboxes};
	if ($options{control})
	{
		socketpair $self->{control}, $theirs, Socket::AF_UNIX(), Socket::SOCK_STREAM(), 0
		  or croak "can't make a socket pair: $!";
		$self->{control}->autoflush(1);
	}
	my $program = $options{program} // $ENV{ENVRT_DRIVER_HOST} // "$top/envrt_driver_host";
	$self->{pid} = EnvrtFixture::spawn(
		sub {
			if ($theirs)
			{
				# Perl closes at exec what is above this.
				POSIX::dup2(fileno $theirs, 20) or die "can't duplicate: $!";
				push @arguments, '--control-fd', 20;
			}
			open STDIN, '<', '/dev/null';
			open STDERR, '>>', $self->{stderr};
			exec $program, @arguments;
			die "can't run $program: $!";
		});
	close $theirs if $theirs;
	EnvrtFixture::register($self);
	return $self if $options{may_fail} || $options{unconfigured};
	# It listens when it has its settings.
	$self->configure(%{ $options{control} }) if $options{control};
	wait_until('the driver host listens',
		sub { -S "$directory/envrt_host.sock" && IO::Socket::UNIX->new(Peer => "$directory/envrt_host.sock") });
	return $self;
}

package HostTest::Host;

use Test::More;
use Time::HiRes qw(sleep time);
use IO::Socket::UNIX;

sub connect
{
	my ($self) = @_;
	my $socket = IO::Socket::UNIX->new(Peer => "$self->{directory}/envrt_host.sock")
	  or die "can't connect: $!";

	return bless { socket => $socket, id => 0, buffer => '', answers => {} }, 'HostTest::Client';
}

# One call over a connection of its own.
sub call
{
	my ($self, $method, $params, $timeout) = @_;

	return $self->connect->call($method, $params, $timeout);
}

sub acquire
{
	my ($self, @request) = @_;

	return $self->call('environmentAcquireLease', HostTest::request(@request));
}

sub probe
{
	my ($self, @request) = @_;

	return $self->call('environmentProbe', HostTest::request(@request));
}

sub stats
{
	my ($self) = @_;

	return $self->call('envrt/stats', {})->{result};
}

sub configure
{
	my ($self, %settings) = @_;

	die 'the driver host does not take its configuration' if !$self->control('configure', \%settings)->{result};
	return;
}

# A call of the launcher.
sub control
{
	my ($self, $method, $params) = @_;

	print { $self->{control} } $json->encode({ jsonrpc => '2.0', id => 1, method => $method, params => $params }), "\n";
	return $json->decode(scalar readline $self->{control});
}

sub is_alive
{
	my ($self) = @_;

	return defined $self->{pid} && EnvrtFixture::is_alive($self->{pid});
}

# Ends it by SIGTERM and returns its exit status.
sub terminate
{
	my ($self) = @_;
	my $pid = delete $self->{pid} or return -1;

	kill 'TERM', $pid;
	waitpid $pid, 0;
	my $status = $?;
	EnvrtFixture::unregister($self);
	return $status;
}

# What it wrote to its log, except what it says of itself.
sub log_text
{
	my ($self) = @_;

	return join '', grep { !/^DEBUG: / } split /^/, EnvrtFixture::slurp($self->{stderr});
}

sub stop
{
	my ($self) = @_;

	EnvrtFixture::unregister($self);
	EnvrtFixture::end_process(delete $self->{pid}) if $self->{pid};
	return;
}

#######################################################################
# A client: calls can be sent and their answers awaited apart
#######################################################################
package HostTest::Client;

use Time::HiRes qw(time);

sub send_call
{
	my ($self, $method, $params) = @_;
	my $id = ++$self->{id};

	$self->send_bytes($json->encode({ jsonrpc => '2.0', id => $id, method => $method, params => $params })
		  . "\n");
	return $id;
}

sub send_bytes
{
	my ($self, $bytes) = @_;

	while (length $bytes)
	{
		my $n = syswrite $self->{socket}, $bytes;

		return 0 if !defined $n;
		substr $bytes, 0, $n, '';
	}
	return 1;
}

# The answer to a call; undef at the end of the connection.
sub answer
{
	my ($self, $id, $timeout) = @_;
	my $deadline = time + ($timeout // 60);

	while (!exists $self->{answers}{$id})
	{
		my $left = $deadline - time;
		my $bits = '';

		vec($bits, fileno $self->{socket}, 1) = 1;
		die "no answer in time\n" if $left <= 0 || !select $bits, undef, undef, $left;
		my $n = sysread $self->{socket}, $self->{buffer}, 65536, length $self->{buffer};
		return undef if !$n;
		while ($self->{buffer} =~ s/^([^\n]*)\n//)
		{
			my $message = $json->decode($1);

			if (defined $message->{id})
			{
				$self->{answers}{ $message->{id} } = $message;
			}
			else
			{
				push @{ $self->{notifications} }, { %$message, time => time };
			}
		}
	}
	return delete $self->{answers}{$id};
}

sub call
{
	my ($self, $method, $params, $timeout) = @_;

	return $self->answer($self->send_call($method, $params), $timeout);
}

# Whether the other side has closed the connection, by then.
sub is_closed
{
	my ($self, $timeout) = @_;
	my $deadline = time + ($timeout // 10);

	while (1)
	{
		my $left = $deadline - time;
		my $bits = '';

		vec($bits, fileno $self->{socket}, 1) = 1;
		return 0 if $left <= 0 || !select $bits, undef, undef, $left;
		return 1 if !sysread $self->{socket}, my $bytes, 65536;
	}
}

sub close
{
	my ($self) = @_;

	close $self->{socket};
	return;
}

#######################################################################
# bad_sshd
#######################################################################
package HostTest;

sub bad_sshd
{
	my ($mode) = @_;
	my $self = bless { mode => $mode, directory => temporary_directory() }, 'HostTest::BadSshd';

	$self->{log} = "$self->{directory}/log";
	pipe my $stdin, $self->{held} or croak "can't make a pipe: $!";
	$self->{pid} = EnvrtFixture::spawn(
		sub {
			open STDIN, '<&', $stdin or die "can't redirect: $!";
			open STDOUT, '>', $self->{log};
			exec "$top/build/bad_sshd", $mode;
			die "can't run bad_sshd: $!";
		});
	EnvrtFixture::register($self);
	wait_until("bad_sshd $mode listens",
		sub { -e $self->{log} && slurp($self->{log}) =~ /^port (\d+)\n(.+\n)/ });
	($self->{port}, $self->{known_hosts}) = slurp($self->{log}) =~ /^port (\d+)\n(.+\n)/;
	mkdir "$self->{directory}/home";
	return $self;
}

package HostTest::BadSshd;

our @ISA = ('HostTest::Host');

sub port { return $_[0]->{port}; }
sub user { return 'nobody'; }
sub keys { return EnvrtFixture::Keys->shared; }
sub known_hosts { return $_[0]->{known_hosts}; }

sub count
{
	my ($self, $event) = @_;
	my $n = () = EnvrtFixture::slurp($self->{log}) =~ /^$event$/mg;

	return $n;
}

1;
