# SSH servers of other kinds than OpenSSH's, as EnvrtFixture::Sshd is one: dropbear, which closes
# channels early under load, and tinyssh, which ends a connection with its one channel.
#
#   my $server = EnvrtOtherSshd->new('dropbear')->start;
#
# Both look for a user's keys in the home that the system's list of users names.  So each is run by
# bubblewrap with a list of its own, of one user who is the current one by number; the name, the home
# and the login shell are the test's to choose, and so they are for OpenSSH's ('openssh').

package EnvrtOtherSshd;

use strict;
use warnings;

use Carp qw(croak);
use IO::Socket::IP;
use EnvrtFixture qw(wait_until has_sandboxes slurp spew run_command temporary_directory);

# tinyssh wants no directory above a home that others may write to, such as /tmp.
my $home = '/mnt';

# Whether it can be run here.
sub is_available
{
	my ($kind) = @_;
	my %programs = (
		dropbear => [qw(/usr/sbin/dropbear /usr/bin/dropbearkey)],
		tinyssh => [qw(/usr/sbin/tinysshd /usr/bin/socat)],
		openssh => ['/usr/sbin/sshd']);

	return has_sandboxes() && -d $home && !grep { !-x } @{ $programs{$kind} };
}

# Options: user (tester), shell (/bin/bash).
sub new
{
	my ($class, $kind, %options) = @_;
	my $directory = temporary_directory();
	my $keys = EnvrtFixture::Keys->shared;
	my $self = bless {
		kind => $kind,
		directory => $directory,
		user => $options{user} // 'tester',
		shell => $options{shell} // '/bin/bash',
		keys => $keys,
		log => "$directory/log",
	}, $class;

	spew($self->{log}, '');
	mkdir "$directory/$_", 0700 or croak "can't make a directory: $!" for 'home', 'home/.ssh';
	spew("$directory/home/.ssh/authorized_keys", slurp($keys->file('user_ed25519.pub')), 0600);
	spew("$directory/passwd",
		"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
		  . "$self->{user}:x:$<:" . ($( + 0) . "::$home:$self->{shell}\n");
	if ($kind eq 'dropbear')
	{
		my $text = run_command('sh', '-c', 'dropbearkey -t ed25519 -f "$1" 2>/dev/null', 'sh', "$directory/host");

		($self->{host_key}) = $text =~ /^(ssh-ed25519 \S+)/m;
	}
	elsif ($kind eq 'tinyssh')
	{
		run_command('tinysshd-makekey', '-q', "$directory/host");
		$self->{host_key} = run_command('tinysshd-printkey', "$directory/host");
		chomp $self->{host_key};
	}
	else
	{
		$self->{host_key} = join ' ', (split ' ', $keys->text('host_ed25519.pub'))[ 0, 1 ];
	}
	return $self;
}

sub command
{
	my ($self) = @_;
	my $directory = $self->{directory};
	my $port = $self->{port};

	return ('dropbear', '-F', '-E', '-s', '-r', "$directory/host", '-p', "127.0.0.1:$port", '-P', "$directory/pid")
	  if $self->{kind} eq 'dropbear';
	return ('socat', "TCP-LISTEN:$port,bind=127.0.0.1,fork,reuseaddr,nodelay,backlog=128", "EXEC:tinysshd -v $directory/host")
	  if $self->{kind} eq 'tinyssh';
	spew("$directory/sshd_config", join "\n",
		"ListenAddress 127.0.0.1:$port", 'HostKey "' . $self->{keys}->file('host_ed25519') . '"',
		"PidFile $directory/pid", 'UsePAM no', 'StrictModes no', 'LogLevel VERBOSE', 'MaxStartups 100',
		'PasswordAuthentication no', 'KbdInteractiveAuthentication no', 'UseDNS no', '');
	return ('/usr/sbin/sshd', '-D', '-e', '-f', "$directory/sshd_config");
}

sub start
{
	my ($self) = @_;
	my $again = defined $self->{port};

	for my $attempt (1 .. 5)
	{
		$self->{port} //= EnvrtFixture::free_port('127.0.0.1');
		$self->{pid} = EnvrtFixture::spawn(
			sub {
				open STDIN, '<', '/dev/null';
				open STDOUT, '>>', $self->{log};
				open STDERR, '>>', $self->{log};
				$ENV{PATH} = "/usr/sbin:/usr/bin:/sbin:/bin";
				exec EnvrtFixture::bound_to_us('bwrap', '--die-with-parent', '--bind', '/', '/', '--dev-bind', '/dev', '/dev',
					'--ro-bind', "$self->{directory}/passwd", '/etc/passwd', '--bind', "$self->{directory}/home", $home,
					'--', $self->command);
				die "can't run bwrap: $!";
			});
		my $up = wait_until("$self->{kind} listens",
			sub {
				return 'no' if !EnvrtFixture::is_alive($self->{pid});
				return IO::Socket::IP->new(PeerHost => '127.0.0.1', PeerPort => $self->{port}) ? 'yes' : 0;
			});
		return EnvrtFixture::register($self) if $up eq 'yes';
		delete $self->{port} if !$again;
	}
	croak "$self->{kind} does not start: " . slurp($self->{log});
}

sub stop
{
	my ($self) = @_;

	EnvrtFixture::unregister($self);
	EnvrtFixture::end_process(delete $self->{pid}) if $self->{pid};
	return;
}

sub port { return $_[0]->{port}; }
sub pid { return $_[0]->{pid}; }
sub user { return $_[0]->{user}; }
sub keys { return $_[0]->{keys}; }

sub known_hosts
{
	my ($self) = @_;

	return "[127.0.0.1]:$self->{port} $self->{host_key}\n";
}

1;
