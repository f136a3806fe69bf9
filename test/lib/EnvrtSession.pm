# A session of psql that stays open, for tests in which statements of several sessions meet.  One
# statement is under way at a time; it may be started, and finished later.
#
#   my $session = EnvrtSession->new($node);
#   my $result = $session->run('SELECT 1');     # { state => '00000', out => '1', message => '' }
#   $session->start('SELECT pg_sleep(1)');
#   $result = $session->finish;
#
# When the connection is lost the state is "lost", now and for ever: make another session.

package EnvrtSession;

use strict;
use warnings;

use Errno qw(EINTR);
use IO::Handle;
use IPC::Open3 qw(open3);
use Time::HiRes qw(time);

$SIG{PIPE} = 'IGNORE';

# Options: database (postgres), connstr (in place of the node).
sub new
{
	my ($class, $node, %options) = @_;
	my $connstr = $options{connstr} // $node->connstr($options{database} // 'postgres');
	my $self = bless { buffer => '', marker => 0 }, $class;

	open my $nowhere, '>', '/dev/null' or die "can't open /dev/null: $!";
	# What is said besides results and SQLSTATEs is in the server's log.
	$self->{pid} = open3($self->{in}, $self->{out}, '>&' . fileno $nowhere, 'psql', '-XAtq', '-d', $connstr);
	$self->{in}->autoflush(1);
	$self->{backend} = $self->run('SELECT pg_backend_pid()', 60)->{out};
	return $self;
}

# The backend's pid.
sub backend
{
	return $_[0]->{backend};
}

sub is_lost
{
	return $_[0]->{lost};
}

sub start
{
	my ($self, $sql) = @_;
	my $marker = '@@' . ++$self->{marker};

	die "$self->{running} is under way" if $self->{running};
	$self->{running} = $sql;
	return $self if $self->{lost};
	print { $self->{in} } "$sql;\n\\echo $marker :SQLSTATE :LAST_ERROR_MESSAGE\n";
	return $self;
}

# Waits for the end of what was started; undef when it does not come in time.
sub finish
{
	my ($self, $timeout) = @_;
	my $deadline = time + ($timeout // 60);
	my $marker = '@@' . $self->{marker};

	while (!$self->{lost})
	{
		if ($self->{buffer} =~ s/\A(.*?)^\Q$marker\E (\S*) ?(.*)\n//ms)
		{
			my ($out, $state, $message) = ($1, $2, $3);

			# The connection went while the server was at it.
			$self->lose, last if $state eq '';
			delete $self->{running};
			chomp $out;
			return { state => $state, out => $out, message => $state eq '00000' ? '' : $message };
		}
		my $left = $deadline - time;
		return undef if $left <= 0;
		my $readable = '';
		vec($readable, fileno $self->{out}, 1) = 1;
		my $ready = select $readable, undef, undef, $left;
		next if $ready <= 0;
		my $n = sysread $self->{out}, $self->{buffer}, 65536, length $self->{buffer};
		$self->lose if !$n && !($!{EINTR} && !defined $n);
	}
	delete $self->{running};
	return { state => 'lost', out => '', message => 'connection lost' };
}

sub run
{
	my ($self, $sql, $timeout) = @_;

	$self->start($sql);
	my $result = $self->finish($timeout // 60);
	die "timed out: $sql" if !$result;
	return $result;
}

sub lose
{
	my ($self) = @_;

	return if $self->{lost};
	$self->{lost} = 1;
	close $self->{in};
	close $self->{out};
	# It has ended, or does so now that its input has.
	kill 'TERM', $self->{pid};
	waitpid $self->{pid}, 0;
	return;
}

sub DESTROY
{
	my ($self) = @_;

	local ($?, $!, $@);
	$self->lose if $self->{out};
	return;
}

1;
