# A client that vanishes: its backend does not wait on, whatever it waits for, and what it has begun on the far
# side is ended; what others wait for, and what was to outlive it, goes on.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use Test::More;
use EnvrtFixture qw(slurp);
use EnvrtTest;
use EnvrtProvider;
use EnvrtSession;

my $sshd = EnvrtFixture::Sshd->new->start;
my $node = new_cluster('clients_gone', conf => EnvrtProvider::conf()
	  . "envrt.provider_timeout = '10min'\nenvrt.reuse_wait_timeout = '10min'\nclient_connection_check_interval = 0\n");
my $provider = EnvrtProvider->new;
my $stalling = EnvrtProvider->new;
my $company = make_company($node);
my $run = make_run($node, $company);

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

sub is_running
{
	my ($word) = @_;

	for my $file (glob '/proc/[0-9]*/cmdline')
	{
		open my $handle, '<', $file or next;
		local $/;
		return 1 if (<$handle> // '') =~ /(?:\0)\Q$word\E(?:\0)/;
	}
	return 0;
}

my $ssh = acquire($node, $company, make_ssh_environment($node, $company, $sshd), $run)->{id};
my $held = $provider->make_environment($node, $company, reuseLease => JSON::PP::true);
my $of_held = acquire($node, $company, $held, $run)->{id};
my $hangs = $stalling->make_environment($node, $company);
my $ended = acquire($node, $company, $hangs, $run)->{id};
$stalling->set_knob("$_-stall") for qw(acquire resume release destroy probe);
sql("SELECT envrt_release_lease('$ended')");
$provider->set_knob('resume-stall');
my $long = sql("SELECT envrt_start_execution('$ssh', 'sleep', ARRAY['1234.3125'])");
my $requested = sql("SELECT envrt_request_lease('$company', '$hangs', '$run')");

my %wait = (
	'a command' => "SELECT envrt_execute('$ssh', 'sleep', ARRAY['1234.4375'], timeout => '10 min')",
	'an acquire' => "SELECT envrt_acquire_lease('$company', '$hangs', '$run')",
	'an acquire of what is held' => "SELECT envrt_acquire_lease('$company', '$held', '$run')",
	'a resume' => "SELECT envrt_resume_lease('$of_held')",
	'a probe' => "SELECT envrt_probe('$hangs')",
	'an execution\'s end' => "SELECT envrt_await_execution('$long')",
	'an execution\'s output' => "SELECT envrt_follow_execution('$long')",
	'a requested lease' => "SELECT envrt_await_lease('$requested', '10 min')",
	'a cleanup' => "SELECT envrt_await_cleanup('$ended', '10 min')",
);
my %session = map { $_ => EnvrtSession->new($node) } sort keys %wait;
my $stays = EnvrtSession->new($node);
my $backends = join ',', map { $_->backend } values %session;

$session{$_}->start($wait{$_}) for sort keys %wait;
$stays->start("SELECT exit_code FROM envrt_execute('$ssh', 'sh', ARRAY['-c', 'while ! test -e go; do sleep 0.1; done'])");
wait_until_sql($node, 'SELECT count(*) = ' . keys(%wait) . " FROM pg_stat_activity WHERE pid IN ($backends) AND wait_event_type = 'Extension'", 'all wait');
wait_until('the command to run', sub { is_running('1234.4375') && is_running('1234.3125') });
kill 'KILL', map { $_->{pid} } values %session;
$_->lose for values %session;
for my $what (sort keys %wait)
{
	ok(eval { wait_until_sql($node, 'SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = ' . $session{$what}->backend, $what, 60) }, "nobody waits for $what any more");
}
ok(eval { wait_until('the command to be gone', sub { !is_running('1234.4375') }, 30) }, 'its command is ended');
ok(is_running('1234.3125'), 'an execution that was waited for goes on');
is(sql("SELECT state FROM envrt.executions WHERE id = '$long'"), 'running', '... and its row says so');
is(scalar(() = slurp($node->logfile) =~ /FATAL:  connection to client lost/g), scalar keys %wait, 'the log says why each session has ended');
spew_go();
is($stays->finish(60)->{out}, '0', 'a client that is there is left alone');

sub spew_go
{
	EnvrtFixture::spew("$sshd->{directory}/workspace/go", '');
	return;
}

$_->clear_knobs for $provider, $stalling;
sql("SELECT envrt_cancel_execution('$long')");
done_testing();
