# What tests connect to: a real sshd, a health server and a server that never speaks, all on
# loopback, on ports that were free, as the current user.  Core Perl only.
#
# Each fixture is a child process of the test, and ends with it also when the test is killed -9: the
# Perl ones watch a pipe whose other end only the test holds, programs get a signal at their
# parent's death.  Otherwise they are ended by pid, with all that runs below them, when the test
# ends or is told to by a signal.

package EnvrtFixture;

use strict;
use warnings;

use Carp qw(croak);
use Errno qw(EINTR);
use Exporter 'import';
use File::Path qw(make_path remove_tree);
use File::Temp ();
use IO::Handle;
use IO::Select;
use IO::Socket::IP;
use POSIX qw(:sys_wait_h _exit);
use Socket qw(SOMAXCONN);
use Time::HiRes qw(sleep time);

our @EXPORT_OK = qw(wait_until has_ipv6 has_sandboxes temporary_directory slurp spew endless_file run_command processes_below);

my $owner = $$;
my @running;       # fixtures of this process, in the order in which they started
my $directories;   # keeps File::Temp's objects alive until the end

# Polls a condition until it returns something true, and returns that; dies with the name of the
# condition when it does not hold in time.  This is how tests wait: never by sleeping alone.
sub wait_until
{
	my ($what, $condition, $timeout) = @_;
	my $deadline = time + ($timeout // 30);

	while (1)
	{
		my $result = $condition->();
		return $result if $result;
		croak "timed out waiting until $what" if time > $deadline;
		sleep 0.02;
	}
}

sub slurp
{
	my ($path) = @_;

	open my $file, '<:raw', $path or croak "can't read $path: $!";
	local $/;
	my $text = <$file>;
	return $text // '';
}

sub spew
{
	my ($path, $text, $mode) = @_;

	# (A program that is being started can't be written.)
	unlink $path if defined $mode;
	open my $file, '>:raw', $path or croak "can't write $path: $!";
	chmod $mode, $path if defined $mode;
	print $file $text;
	close $file or croak "can't write $path: $!";
	return;
}

# A file that takes long to transfer and little room: of so many holes a transfer takes no notice.
sub endless_file
{
	my ($path) = @_;

	open my $file, '>:raw', $path or croak "can't write $path: $!";
	truncate $file, 900 * 1024**3;
	for (1 .. 10_050)
	{
		seek $file, $_ * 8192, 0;
		print $file 'x';
	}
	close $file or croak "can't write $path: $!";
	return;
}

# Runs a program without a shell, returns its standard output, and dies when it fails.
sub run_command
{
	my (@command) = @_;

	open my $pipe, '-|', @command or croak "can't run $command[0]: $!";
	my $output = do { local $/; <$pipe> };
	close $pipe or croak "@command failed with status $?";
	return $output // '';
}

# A directory of our own, mode 0700, that is gone when the test ends.
sub temporary_directory
{
	my $directory = File::Temp->newdir('envrt-fixture-XXXXXX', TMPDIR => 1);

	push @$directories, $directory;
	return "$directory";
}

my $ipv6;

sub has_ipv6
{
	$ipv6 //= IO::Socket::IP->new(LocalHost => '::1', LocalPort => 0, Listen => 1) ? 1 : 0;
	return $ipv6;
}

# Whether bubblewrap works for this user: in a chroot, and where a kernel forbids it, nobody but root
# can make the namespaces.  Under valgrind the driver host can't watch them (it has no pidfd_open).
my $sandboxes = $ENV{ENVRT_VALGRIND_LOGS} ? 0 : undef;

sub has_sandboxes
{
	$sandboxes //= system('bwrap --unshare-all --ro-bind / / true >/dev/null 2>&1') == 0 ? 1 : 0;
	return $sandboxes;
}

sub loopback_addresses
{
	return has_ipv6() ? ('127.0.0.1', '::1') : ('127.0.0.1');
}

# Sockets listening on one free port on each of the addresses.
sub listen_anywhere
{
	my (@addresses) = @_;

	for my $attempt (1 .. 50)
	{
		my @sockets;
		my $port = 0;

		for my $address (@addresses)
		{
			my $socket = IO::Socket::IP->new(
				LocalHost => $address,
				LocalPort => $port,
				Listen => SOMAXCONN,
				ReuseAddr => 1);

			last if !$socket;
			push @sockets, $socket;
			$port = $socket->sockport;
		}
		return ($port, @sockets) if @sockets == @addresses;
	}
	croak 'no free port on loopback';
}

sub free_port
{
	my ($port, @sockets) = listen_anywhere(@_);

	$_->close for @sockets;
	return $port;
}

# The pids of all processes below one, the deepest last.
sub processes_below
{
	my (@roots) = @_;
	my %children;
	my @found;

	opendir my $proc, '/proc' or croak "can't read /proc: $!";
	for my $pid (grep { /^\d+$/ } readdir $proc)
	{
		open my $file, '<', "/proc/$pid/stat" or next;
		my $stat = <$file> // next;
		# The program's name is in parentheses and may hold anything.
		push @{ $children{$1} }, $pid if $stat =~ /^.*\) \S (\d+)/s;
	}
	while (@roots)
	{
		my $root = shift @roots;
		my @below = @{ $children{$root} // [] };

		push @found, @below;
		push @roots, @below;
	}
	return @found;
}

# Forks; the child runs the code, without our signal handlers and without returning.
sub spawn
{
	my ($code) = @_;

	STDOUT->flush;
	STDERR->flush;
	my $pid = fork // croak "can't fork: $!";
	return $pid if $pid;

	$SIG{$_} = 'DEFAULT' for qw(INT TERM HUP PIPE CHLD);
	my $done = eval { $code->(); 1 };
	print STDERR $@ if !$done;
	_exit($done ? 0 : 1);
}

sub is_alive
{
	my ($pid) = @_;

	# Ours are zombies until they are waited for.
	waitpid $pid, WNOHANG;
	return kill 0, $pid;
}

# A program that ends when we do, whatever ends us.
sub bound_to_us
{
	my (@command) = @_;

	return ('/usr/bin/setpriv', '--pdeathsig', 'TERM', '--', @command) if -x '/usr/bin/setpriv';
	return @command;
}

# Ends a child of ours and all that runs below it.
sub end_process
{
	my ($pid) = @_;
	my %ended;

	# Stopped, it can't make new children while they are listed.
	kill 'STOP', $pid;
	my @below = processes_below($pid);
	kill 'TERM', $pid;
	kill 'CONT', $pid;
	my $deadline = time + 5;
	while (is_alive($pid))
	{
		kill 'KILL', $pid if time > $deadline;
		sleep 0.01;
	}
	# Those below may be nobody's children now, and have children of their own.
	for my $round (1 .. 100)
	{
		@below = grep { kill 0, $_ } @below;
		last if !@below;
		push @below, processes_below(@below);
		kill $round < 50 ? 'TERM' : 'KILL', @below;
		sleep 0.02;
	}
	return;
}

# Every fixture has start, stop and stop_all in common.
sub register
{
	my ($fixture) = @_;

	push @running, $fixture;
	return $fixture;
}

sub unregister
{
	my ($fixture) = @_;

	@running = grep { $_ != $fixture } @running;
	return;
}

sub stop_all
{
	return if $$ != $owner;
	# A copy: each takes itself off the list.
	my @fixtures = reverse @running;
	$_->stop for @fixtures;
	return;
}

# A signal must end the test by way of END, so that everything is stopped.
for my $signal (qw(INT TERM HUP))
{
	$SIG{$signal} = sub { exit 1 }
	  if !defined $SIG{$signal} || $SIG{$signal} eq 'DEFAULT';
}

END
{
	my $status = $?;

	EnvrtFixture::stop_all();
	# Now, and not when Perl takes everything down in an order of its own.
	undef $directories if $$ == $owner;
	$? = $status;
}

#######################################################################
# A server in Perl: a child that serves with select() and logs events.
#######################################################################
package EnvrtFixture::Server;

use strict;
use warnings;

use Time::HiRes qw(time);

# Options: addresses.
sub new
{
	my ($class, %options) = @_;
	my $self = bless {
		addresses => $options{addresses} // [ EnvrtFixture::loopback_addresses() ],
		options => \%options,
	}, $class;

	$self->{directory} = EnvrtFixture::temporary_directory();
	$self->{log} = "$self->{directory}/log";
	EnvrtFixture::spew($self->{log}, '');
	return $self;
}

sub start
{
	my ($self) = @_;
	my ($port, @listeners) = EnvrtFixture::listen_anywhere(@{ $self->{addresses} });

	pipe my $watched, my $held or die "can't make a pipe: $!";
	$self->{port} = $port;
	$self->{pid} = EnvrtFixture::spawn(
		sub {
			close $held;
			open $self->{events}, '>>', $self->{log} or die "can't write: $!";
			$self->{events}->autoflush(1);
			$self->serve($watched, @listeners);
		});
	close $watched;
	# A child that is forked later holds it as well, but ends before this one for the same reason;
	# programs don't, since Perl's descriptors close at exec.
	$self->{held} = $held;
	return EnvrtFixture::register($self);
}

sub stop
{
	my ($self) = @_;

	EnvrtFixture::unregister($self);
	EnvrtFixture::end_process(delete $self->{pid}) if $self->{pid};
	close delete $self->{held} if $self->{held};
	return;
}

sub port
{
	return $_[0]->{port};
}

sub pid
{
	return $_[0]->{pid};
}

# How often an event was logged.
sub count
{
	my ($self, $event) = @_;
	my $n = () = EnvrtFixture::slurp($self->{log}) =~ /^\Q$event\E/mg;

	return $n;
}

sub event
{
	my ($self, $event) = @_;

	syswrite $self->{events}, "$event\n";
	return;
}

# Accepts and hands what comes to received(client, bytes), until the test is gone.
sub serve
{
	my ($self, $watched, @listeners) = @_;
	my $select = IO::Select->new($watched, @listeners);
	my %is_listener = map { fileno($_) => 1 } @listeners;
	my %buffer;

	while (1)
	{
		for my $ready ($select->can_read)
		{
			return if $ready == $watched;
			if ($is_listener{ fileno $ready })
			{
				my $client = $ready->accept or next;

				$client->blocking(0);
				$select->add($client);
				$buffer{$client} = '';
				$self->event('accept');
				next;
			}
			my $n = sysread $ready, my $bytes, 65536;
			next if !defined $n && ($!{EAGAIN} || $!{EINTR});
			$buffer{$ready} .= $bytes if $n;
			if (!$n || !$self->received($ready, \$buffer{$ready}))
			{
				$self->event('close');
				delete $buffer{$ready};
				$select->remove($ready);
				close $ready;
			}
		}
	}
}

#######################################################################
# Accepts, and never says a word.
#######################################################################
package EnvrtFixture::Silent;

use strict;
use warnings;
our @ISA = ('EnvrtFixture::Server');

sub received
{
	my ($self, $client, $buffer) = @_;

	$$buffer = '';
	return 1;
}

sub accepted
{
	return $_[0]->count('accept');
}

# Connections that the other side has not closed yet.
sub open_connections
{
	my ($self) = @_;
	my $log = EnvrtFixture::slurp($self->{log});
	my $accepted = () = $log =~ /^accept/mg;
	my $closed = () = $log =~ /^close/mg;

	return $accepted - $closed;
}

#######################################################################
# GET /api/health.  Options: status (200), silent (reads, never answers).
#######################################################################
package EnvrtFixture::Health;

use strict;
use warnings;
our @ISA = ('EnvrtFixture::Server');

sub received
{
	my ($self, $client, $buffer) = @_;
	my $status = $self->{options}{status} // 200;
	my $body = '{"status":"ok"}';

	return length $$buffer < 65536 if $$buffer !~ /\r?\n\r?\n/;
	my ($method, $path) = $$buffer =~ /^(\S+) (\S+)/ or return 0;
	$self->event("request $method $path");
	return 1 if $self->{options}{silent};
	if ($method ne 'GET' || $path ne '/api/health')
	{
		$status = 404;
		$body = '{"status":"unknown"}';
	}
	$client->blocking(1);
	syswrite $client,
	  "HTTP/1.1 $status Status\r\nContent-Type: application/json\r\n"
	  . 'Content-Length: '
	  . length($body)
	  . "\r\nConnection: close\r\n\r\n$body";
	return 0;
}

sub requests
{
	return $_[0]->count('request GET /api/health');
}

# Its origin as a URL; with an argument for that address.
sub origin
{
	my ($self, $address) = @_;

	$address //= $self->{addresses}[0];
	$address = "[$address]" if $address =~ /:/;
	return "http://$address:$self->{port}";
}

#######################################################################
# Keys, made once a process: host keys, user keys, a CA and a certificate.
#######################################################################
package EnvrtFixture::Keys;

use strict;
use warnings;

my $shared;

sub shared
{
	$shared //= __PACKAGE__->new(EnvrtFixture::temporary_directory());
	return $shared;
}

sub new
{
	my ($class, $directory) = @_;
	my $self = bless { directory => $directory }, $class;
	my %bits = (ecdsa => [ '-b', 256 ], rsa => [ '-b', 2048 ], ed25519 => []);

	for my $type (qw(ed25519 ecdsa rsa))
	{
		$self->generate("host_$type", $type, @{ $bits{$type} });
		$self->generate("user_$type", $type, @{ $bits{$type} });
	}
	# A second company's key, one that nobody accepts, one with a passphrase, and one that is
	# accepted for its certificate alone.
	$self->generate($_, 'ed25519') for qw(user_second user_refused user_ca user_cert);
	$self->generate('user_encrypted', 'ed25519', '-N', 'passphrase');
	EnvrtFixture::run_command('ssh-keygen', '-q', '-s', "$directory/user_ca", '-I', 'envrt-test',
		'-n', scalar(getpwuid $<), "$directory/user_cert.pub");
	my $authorized = join '', map { EnvrtFixture::slurp("$directory/$_.pub") }
	  qw(user_ed25519 user_ecdsa user_rsa user_second user_encrypted);
	EnvrtFixture::spew("$directory/authorized_keys", $authorized, 0600);
	return $self;
}

# -N in the arguments overrides the empty passphrase.
sub generate
{
	my ($self, $name, $type, @arguments) = @_;
	my @passphrase = (grep { $_ eq '-N' } @arguments) ? () : ('-N', '');

	EnvrtFixture::run_command('ssh-keygen', '-q', '-t', $type, '-C', $name, '-f',
		"$self->{directory}/$name", @passphrase, @arguments);
	return;
}

sub file
{
	my ($self, $name) = @_;

	return "$self->{directory}/$name";
}

sub text
{
	my ($self, $name) = @_;

	return EnvrtFixture::slurp($self->file($name));
}

# The private key with its user certificate beside it.
sub text_with_certificate
{
	my ($self) = @_;

	return $self->text('user_cert') . $self->text('user_cert-cert.pub');
}

#######################################################################
# A real sshd.
#
# Options: addresses, host_keys (types, all three), max_sessions, max_startups, extra (a list of
# lines for its configuration; the first value of an option counts, and they come first), keys.
#######################################################################
package EnvrtFixture::Sshd;

use strict;
use warnings;

use Carp qw(croak);

sub new
{
	my ($class, %options) = @_;
	my $self = bless {
		addresses => $options{addresses} // [ EnvrtFixture::loopback_addresses() ],
		host_keys => $options{host_keys} // [qw(ed25519 ecdsa rsa)],
		keys => $options{keys} // EnvrtFixture::Keys->shared,
		options => \%options,
		directory => EnvrtFixture::temporary_directory(),
	}, $class;

	croak 'sshd needs /run/sshd when root starts it; run the tests as another user'
	  if $< == 0 && !-d '/run/sshd';
	# A clean home: a login profile that is slow or talks would be part of every measurement.
	mkdir "$self->{directory}/home" or croak "can't make a directory: $!";
	$self->{log} = "$self->{directory}/sshd.log";
	EnvrtFixture::spew($self->{log}, '');
	return $self;
}

sub program
{
	for my $path ('/usr/sbin/sshd', '/usr/local/sbin/sshd')
	{
		return $path if -x $path;
	}
	croak 'no sshd found: install openssh-server';
}

sub write_config
{
	my ($self) = @_;
	my $directory = $self->{directory};
	my $options = $self->{options};
	my $keys = $self->{keys};
	my @lines = @{ $options->{extra} // [] };

	push @lines, map { "ListenAddress " . (/:/ ? "[$_]" : $_) . ":$self->{port}" }
	  @{ $self->{addresses} };
	push @lines, map { 'HostKey "' . $keys->file("host_$_") . '"' } @{ $self->{host_keys} };
	push @lines, 'MaxSessions ' . ($options->{max_sessions} // 10);
	push @lines, 'MaxStartups ' . ($options->{max_startups} // '10:30:100');
	push @lines, map { "$_->[0] \"$_->[1]\"" } (
		[ AuthorizedKeysFile => $keys->file('authorized_keys') ],
		[ TrustedUserCAKeys => $keys->file('user_ca.pub') ],
		[ PidFile => "$directory/sshd.pid" ],
		[ SetEnv => "HOME=$directory/home" ]);
	push @lines, 'UsePAM no', 'StrictModes no', 'LogLevel VERBOSE', 'PasswordAuthentication no',
	  'KbdInteractiveAuthentication no', 'PrintMotd no', 'PrintLastLog no', 'UseDNS no',
	  'Subsystem sftp internal-sftp';
	EnvrtFixture::spew("$directory/sshd_config", join("\n", @lines) . "\n");
	return;
}

# A port that is free now may be taken before sshd has it: then another one is tried.  After a
# stop, start uses the same port again.
sub start
{
	my ($self) = @_;
	my $program = program();
	my $config = "$self->{directory}/sshd_config";

	for my $attempt (1 .. 10)
	{
		my $again = defined $self->{port};
		my $start = -s $self->{log};

		$self->{port} //= EnvrtFixture::free_port(@{ $self->{addresses} });
		$self->write_config;
		$self->{pid} = EnvrtFixture::spawn(
			sub {
				open STDIN, '<', '/dev/null';
				open STDOUT, '>', '/dev/null';
				open STDERR, '>>', $self->{log};
				exec EnvrtFixture::bound_to_us($program, '-D', '-f', $config, '-E', $self->{log});
				die "can't run $program: $!";
			});
		my $up = EnvrtFixture::wait_until(
			'sshd listens',
			sub {
				my $new = substr EnvrtFixture::slurp($self->{log}), $start;
				my $listening = () = $new =~ /^Server listening on /mg;

				return 'no' if $new =~ /Address already in use/;
				return 'yes' if $listening == @{ $self->{addresses} };
				return 'no' if !EnvrtFixture::is_alive($self->{pid});
				return 0;
			});
		return EnvrtFixture::register($self) if $up eq 'yes';
		EnvrtFixture::end_process(delete $self->{pid});
		my $new = substr EnvrtFixture::slurp($self->{log}), $start;
		croak "sshd does not start: $new" if $new !~ /Address already in use/;
		delete $self->{port} if !$again;
	}
	croak 'sshd finds no free port';
}

sub stop
{
	my ($self) = @_;

	EnvrtFixture::unregister($self);
	EnvrtFixture::end_process(delete $self->{pid}) if $self->{pid};
	return;
}

sub port
{
	return $_[0]->{port};
}

sub pid
{
	return $_[0]->{pid};
}

sub user
{
	return scalar getpwuid $<;
}

sub keys
{
	return $_[0]->{keys};
}

sub log_text
{
	return EnvrtFixture::slurp($_[0]->{log});
}

# TCP connections since the start of the log.
sub count_connections
{
	my ($self) = @_;
	my $n = () = $self->log_text =~ /^Connection from /mg;

	return $n;
}

# Processes that serve a connection now.
sub sessions
{
	my ($self) = @_;

	return EnvrtFixture::processes_below($self->{pid});
}

# Lines for known_hosts.  Options: types, hashed, keys (of another server, to be wrong).
sub known_hosts
{
	my ($self, %options) = @_;
	my $keys = $options{keys} // $self->{keys};
	my $text = '';

	for my $address (@{ $self->{addresses} }, 'localhost')
	{
		my $name = $self->{port} == 22 ? $address : "[$address]:$self->{port}";

		for my $type (@{ $options{types} // $self->{host_keys} })
		{
			my ($algorithm, $key) = split ' ', $keys->text("host_$type.pub");

			$text .= "$name $algorithm $key\n";
		}
	}
	if ($options{hashed})
	{
		my $file = EnvrtFixture::temporary_directory() . '/known_hosts';

		EnvrtFixture::spew($file, $text);
		# It speaks about the file that it keeps; the text is what we want.
		EnvrtFixture::run_command('sh', '-c', 'ssh-keygen -q -H -f "$1" 2>/dev/null', 'sh', $file);
		$text = EnvrtFixture::slurp($file);
	}
	return $text;
}

#######################################################################
# Another program that serves one port, such as a server that breaks on purpose.
#
# It says "port N" on its standard output when it listens, and ends when its standard input does.
#######################################################################
package EnvrtFixture::Program;

use strict;
use warnings;

use Carp qw(croak);

sub new
{
	my ($class, @command) = @_;

	return bless { command => \@command }, $class;
}

sub start
{
	my ($self) = @_;
	my @command = @{ $self->{command} };

	pipe my $stdin, my $held or croak "can't make a pipe: $!";
	pipe my $output, my $stdout or croak "can't make a pipe: $!";
	$self->{pid} = EnvrtFixture::spawn(
		sub {
			open STDIN, '<&', $stdin or die "can't redirect: $!";
			open STDOUT, '>&', $stdout or die "can't redirect: $!";
			exec EnvrtFixture::bound_to_us(@command);
			die "can't run $command[0]: $!";
		});
	close $stdin;
	close $stdout;
	$self->{held} = $held;
	$self->{output} = $output;
	EnvrtFixture::register($self);
	while (my $line = <$output>)
	{
		return $self if ($self->{port}) = $line =~ /^port (\d+)$/;
	}
	$self->stop;
	croak "@command ended without saying its port";
}

sub stop
{
	my ($self) = @_;

	EnvrtFixture::unregister($self);
	close delete $self->{held} if $self->{held};
	EnvrtFixture::end_process(delete $self->{pid}) if $self->{pid};
	close delete $self->{output} if $self->{output};
	return;
}

sub port
{
	return $_[0]->{port};
}

sub pid
{
	return $_[0]->{pid};
}

1;
