#!/usr/bin/perl
# The driver host against a real sshd: leases, probes, keys, host keys, the pool.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use HostTest;
use Test::More;

my $keys = EnvrtFixture::Keys->shared;
my $sshd = EnvrtFixture::Sshd->new(keys => $keys)->start;
my $host = start_host(control => {});
my $user = $sshd->user;
my $port = $sshd->port;
my $target = "$user\@127.0.0.1:$port";
my $home = "$sshd->{directory}/home";

# The answer's shape.
my $answer = $host->acquire(ssh_config($sshd));
is_deeply(
	$answer->{result},
	{
		providerLeaseId => "ssh://$target$home/workspace",
		metadata => {
			host => '127.0.0.1',
			port => $port,
			username => $user,
			remoteWorkspacePath => "$home/workspace",
			remoteCwd => "$home/workspace",
			paperclipApiUrl => undef
		},
		expiresAt => undef
	},
	'an acquire answers the lease id and the metadata');
ok(-d "$home/workspace", 'the workspace is there');

# The pool.
is($sshd->count_connections, 1, 'one connection');
$answer = $host->acquire(ssh_config($sshd, remoteWorkspacePath => "$home/other"));
is($answer->{result}{metadata}{remoteCwd}, "$home/other", 'a second acquire works');
is($sshd->count_connections, 1, '... over the same connection');
$answer = $host->acquire(ssh_config($sshd), company => 'company-2');
ok($answer->{result}, 'another company with the same key');
is($sshd->count_connections, 2, '... never shares');
$answer = $host->acquire(ssh_config($sshd, privateKey => $keys->text('user_second')));
ok($answer->{result}, 'the same company with another key');
is($sshd->count_connections, 3, '... never shares either');

# Paths.
for my $path (
	"it's", 'double "quotes"', 'a  b', "line\nbreak", '$HOME `id` $(id)', 'back\\slash\\', '-dash',
	"\x{fc}ml\x{e4}ut \x{1f600}", '*', '!bang', 'a/b/c')
{
	my $full = "$home/paths/$path";
	my $got = $host->acquire(ssh_config($sshd, remoteWorkspacePath => $full));

	(my $name = $path) =~ s/\n/\\n/g;
	utf8::encode($name);
	is($got->{result}{metadata}{remoteCwd}, $full, "path: $name");
}
symlink "$home/workspace", "$home/link";
$answer = $host->acquire(ssh_config($sshd, remoteWorkspacePath => "$home/link"));
is($answer->{result}{metadata}{remoteCwd}, "$home/link", 'a path through a symbolic link stays it');

spew("$home/file", '');
is_error(
	$host->acquire(ssh_config($sshd, remoteWorkspacePath => "$home/file/x")),
	'38000', qr/^\Q$target\E: the workspace path "\Q$home\E\/file\/x" can't be made or entered: mkdir/,
	'a path that cannot be made');

# Probes.
is_deeply(
	$host->probe(ssh_config($sshd))->{result},
	{
		ok => JSON::PP::true,
		summary => "Connected to $user\@127.0.0.1 and verified the remote workspace path.",
		details => {
			host => '127.0.0.1',
			port => $port,
			username => $user,
			remoteWorkspacePath => "$home/workspace",
			remoteCwd => "$home/workspace"
		}
	},
	'a probe that succeeds');
my $probe = $host->probe(ssh_config($sshd, remoteWorkspacePath => "$home/file/x"))->{result};
ok(!$probe->{ok}, 'a probe that fails is an answer');
is($probe->{summary}, "SSH probe failed for $user\@127.0.0.1.", '... with its summary');
like($probe->{details}{error}, qr/^mkdir: /, '... what the remote side wrote');
is($probe->{details}{code}, 1, '... its exit status');
is($probe->{details}{sqlstate}, '38000', '... and the SQLSTATE');
$probe = $host->probe(ssh_config($sshd, privateKey => $keys->text('user_refused')))->{result};
is($probe->{details}{code}, 255, 'a probe that is not let in has code 255');
is($probe->{details}{sqlstate}, '28000', '... and the SQLSTATE');

# APIs.
my $health = EnvrtFixture::Health->new->start;
my $broken = EnvrtFixture::Health->new(status => 500)->start;
my $silent = EnvrtFixture::Health->new(silent => 1)->start;
my $nowhere = 'http://127.0.0.1:' . EnvrtFixture::free_port('127.0.0.1');
$answer = $host->acquire(ssh_config($sshd),
	candidates => [ $nowhere, $broken->origin . '/ignored', $health->origin, 'http://127.0.0.1:1' ]);
is($answer->{result}{metadata}{paperclipApiUrl}, $health->origin, 'the first API that answers wins');
is($broken->requests, 1, '... after those before it were asked');
my $took = elapsed(
	sub {
		$answer = $host->acquire(ssh_config($sshd), candidates => [ $silent->origin, $nowhere ],
			probe => 1000);
	});
is_error($answer, '38000',
	qr/^SSH environment \Q$user\E\@127\.0\.0\.1 could not reach any Paperclip API candidates\.$/,
	'no API answers');
like($answer->{error}{data}{detail}, qr/\Q@{[$silent->origin]}\E, \Q$nowhere\E/, '... which ones');
cmp_ok($took, '<', 4, '... each within its time');

# Keys.
for my $type (qw(ecdsa rsa))
{
	ok($host->acquire(ssh_config($sshd, privateKey => $keys->text("user_$type")))->{result},
		"an $type key");
}
(my $windows = $keys->text('user_ed25519')) =~ s/\n/\r\n/g;
ok($host->acquire(ssh_config($sshd, privateKey => $windows))->{result}, 'a key with CRLF');
(my $cut = $keys->text('user_ed25519')) =~ s/\n+\z//;
ok($host->acquire(ssh_config($sshd, privateKey => $cut))->{result}, 'a key without a final newline');
ok($host->acquire(ssh_config($sshd, privateKey => $keys->text_with_certificate))->{result},
	'a key with a user certificate');
is_error($host->acquire(ssh_config($sshd, privateKey => $keys->text('user_cert'))),
	'28000', qr/the server refused our key \(ssh-ed25519\)/, '... is refused without it');
is_error(
	$host->acquire(
		ssh_config($sshd, privateKey => $keys->text('user_ed25519') . $keys->text('user_cert-cert.pub'))
	),
	'22023',
	qr/belongs to another key/,
	'a certificate of another key');
is_error($host->acquire(ssh_config($sshd, privateKey => $keys->text('user_encrypted'))),
	'22023', qr/encrypted/, 'a key with a passphrase');
is_error($host->acquire(ssh_config($sshd, privateKey => 'rubbish')),
	'22023', qr/no private key/, 'no key at all');
$answer = $host->acquire(ssh_config($sshd, privateKey => $keys->text('user_refused')));
is_error($answer, '28000', qr/^\Q$target\E: the server refused our key/, 'a key that is refused');
like($answer->{error}{data}{detail}, qr/would take: publickey/, '... and what the server would take');

# Host keys.
sub known
{
	my ($text, %other) = @_;

	return ssh_config($sshd, knownHosts => $text, %other);
}
my ($ed25519) = $sshd->known_hosts =~ /^(.*ssh-ed25519.*\n)/m;
my $wrong = $keys->text('user_ed25519.pub');
$wrong = "[127.0.0.1]:$port $wrong";
ok($host->acquire(known($sshd->known_hosts(hashed => 1)))->{result}, 'hashed known_hosts');
for my $type (qw(ecdsa rsa ed25519))
{
	my ($line) = grep { /$type/ } split /^/, $sshd->known_hosts;

	ok($host->acquire(known($line))->{result}, "only the $type host key is known");
}
$answer = $host->acquire(known(undef));
is_error($answer, '08004', qr/no knownHosts/, 'no knownHosts at all');
$answer = $host->acquire(known("elsewhere.example $wrong"));
is_error($answer, '08004', qr/the host key is unknown/, 'an unknown host key');
like($answer->{error}{data}{detail}, qr/ssh-ed25519 SHA256:[A-Za-z0-9+\/]{43}/, '... its fingerprint');
is_error($host->acquire(known($wrong)), '08004', qr/the host key has changed/, 'a changed host key');
my $only_ed25519 = EnvrtFixture::Sshd->new(keys => $keys, host_keys => ['ed25519'])->start;
(my $other_type) = grep { /rsa/ } split /^/, $sshd->known_hosts;
$other_type =~ s/:$port/':' . $only_ed25519->port/ge;
is_error($host->acquire(ssh_config($only_ed25519, knownHosts => $other_type)),
	'08004', qr/of another type \(ssh-ed25519\)/, 'a host key of another type');
my $lax = JSON::PP::false;
ok($host->acquire(known(undef, strictHostKeyChecking => $lax))->{result}, 'unchecked on request');
is_error(
	$host->acquire(
		known($sshd->known_hosts . join('', map { "\@revoked $_" } split /^/, $sshd->known_hosts))),
	'08004', qr/revoked/, 'a revoked host key');
is_error(
	$host->acquire(
		known(join('', map { "\@revoked * $_" } map { s/^\S+ //r } split /^/, $sshd->known_hosts),
			strictHostKeyChecking => $lax)),
	'08004', qr/revoked/, '... also when keys are not checked');
is_error($host->acquire(known("\@cert-authority * ssh-ed25519 AAAA")),
	'08004', qr/cert-authority/, 'only a certificate authority is known');
(my $portless = $sshd->known_hosts) =~ s/^\[([^]]+)\]:\d+/$1/mg;
is_error($host->acquire(known($portless)),
	'08004', qr/not for port $port/, 'a line without the port is not for another port');

# Addresses.
SKIP:
{
	skip 'no IPv6 here', 2 if !EnvrtFixture::has_ipv6();
	my $lines = $sshd->known_hosts;

	$lines =~ s/\[127\.0\.0\.1\]/[::1]/g if $lines !~ /\[::1\]/;
	for my $name ('::1', '[::1]')
	{
		$answer = $host->acquire(ssh_config($sshd, host => $name, knownHosts => $lines));
		like($answer->{result}{providerLeaseId} // '', qr/^ssh:\/\/\Q$user\E\@\[::1\]:$port\//,
			"IPv6: $name");
	}
}
(my $localhost = $sshd->known_hosts) =~ s/127\.0\.0\.1/localhost/g;
ok($host->acquire(ssh_config($sshd, host => 'localhost', knownHosts => $localhost))->{result},
	'a host name');
is_error($host->acquire(ssh_config($sshd, host => 'no-such-host.invalid'), connect => 8000),
	'08001', qr/could not find the host "no-such-host\.invalid"/, 'a name that does not resolve');
is_error($host->acquire(ssh_config($sshd, port => EnvrtFixture::free_port('127.0.0.1'))),
	'08001', qr/could not connect to .*: Connection refused|connection refused/i, 'a closed port');

SKIP:
{
	my @addresses = split ' ', qx(getent ahosts localhost | sed -n 's/ *STREAM.*//p');

	skip 'localhost has one address only', 1 if @addresses < 2 || !EnvrtFixture::has_ipv6();
	my $last = EnvrtFixture::Sshd->new(keys => $keys, addresses => [ $addresses[-1] ])->start;

	ok($host->acquire(ssh_config($last, host => 'localhost'))->{result},
		'a host name of which only the last address answers');
}

# Allowed hosts.
sub allowed
{
	my ($list, %other) = @_;

	$host->configure(allowedHosts => $list);
	return $host->acquire(ssh_config($sshd, knownHosts => $sshd->known_hosts . $localhost, %other));
}
ok(allowed([ '10.0.0.0/8', '127.0.0.0/8' ])->{result}, 'allowed by its network');
ok(allowed(['127.0.0.1'])->{result}, 'allowed by its address');
is_error(allowed(['10.0.0.0/8']), '42501', qr/envrt\.allowed_hosts/, 'not allowed by address');
is_error(allowed(['*.example']), '42501', qr/envrt\.allowed_hosts/, 'not allowed by name');
is_error(allowed(['*.example'], host => 'localhost'),
	'42501', qr/envrt\.allowed_hosts/, 'a name not allowed');
ok(allowed(['local*'], host => 'localhost')->{result}, 'allowed by its name');
ok(allowed([])->{result}, 'an empty list allows all');

# Config and protocol.
is_error($host->acquire(ssh_config($sshd, remoteWorkspacePath => 'relative')),
	'22023', qr/SSH remote workspace path must be absolute\./, 'a relative path');
is_error($host->acquire({}), '22023', qr/require a host/, 'an empty config');
is_error($host->acquire(undef), '22023', qr/no object/, 'no config');
is_error($host->acquire(ssh_config($sshd), candidates => ['ftp://x']),
	'22023', qr/apiCandidates/, 'a candidate that is no URL');
is_error($host->call('environmentAcquireLease', { driverKey => 'none' }),
	'42704', qr/^Sandbox provider "none" is not registered/, 'an unknown driver');
is_error($host->call('environmentResumeLease', { driverKey => 'ssh' }),
	'42704', qr/no method environmentResumeLease/, 'a method that the driver lacks');
is_error($host->call('bogus', {}), '42704', qr/no method bogus/, 'an unknown method');
is_error($host->call('configure', {}), '42704', qr/no method configure/, 'clients cannot configure');
is($host->call('envrt/ping', {})->{result}, undef, 'ping');

# A cold crowd shares one connection; a warm one is quick.
my $crowd = EnvrtFixture::Sshd->new(keys => $keys)->start;
my @clients = map { $host->connect } 1 .. 8;
my @ids = map { $_->send_call('environmentAcquireLease', HostTest::request(ssh_config($crowd))) } @clients;
my $good = grep { $clients[$_]->answer($ids[$_])->{result} } 0 .. $#clients;
is($good, 8, 'eight cold calls at once');
is($crowd->count_connections, 1, '... share one connection');
@ids = map { $clients[0]->send_call('environmentAcquireLease', HostTest::request(ssh_config($crowd))) } 1 .. 100;
$good = grep { $clients[0]->answer($_)->{result} } @ids;
is($good, 100, 'a hundred calls at once over one client');
cmp_ok(scalar(grep { $_->{port} == $crowd->port } @{ $host->stats->{sshSessions} }),
	'<=', 4, '... over no more sessions than allowed');

# Cold calls of forty companies at once: more than MaxStartups.
my $stormy = EnvrtFixture::Sshd->new(keys => $keys)->start;
my $client = $host->connect;
@ids = map {
	$client->send_call('environmentAcquireLease',
		HostTest::request(ssh_config($stormy), company => "storm-$_", connect => 30000))
} 1 .. 40;
$good = grep { $client->answer($_)->{result} } @ids;
is($good, 40, 'forty cold sessions at once in spite of MaxStartups');

# MaxSessions.
my $narrow = EnvrtFixture::Sshd->new(keys => $keys, max_sessions => 2)->start;
@ids = map { $client->send_call('environmentAcquireLease', HostTest::request(ssh_config($narrow))) } 1 .. 20;
$good = grep { $client->answer($_)->{result} } @ids;
is($good, 20, 'twenty calls at a server with MaxSessions 2');
my $none = EnvrtFixture::Sshd->new(keys => $keys, max_sessions => 0)->start;
is_error($host->acquire(ssh_config($none)), '08006', qr/opens no session channel/,
	'a server with MaxSessions 0');

# A dead pooled session is replaced.
my $before = $crowd->count_connections;
$crowd->stop;
$crowd->start;
ok($host->acquire(ssh_config($crowd))->{result}, 'after a restart of the server');
cmp_ok($crowd->count_connections, '>', $before, '... a new connection is made');

# Idle sessions.
$host->configure(sshIdleTimeoutMs => 100);
ok($host->acquire(ssh_config($sshd), company => 'idle')->{result}, 'an acquire with a short idle time');
wait_until('its session is closed',
	sub { !grep { $_->{companyId} eq 'idle' } @{ $host->stats->{sshSessions} } });
pass('an idle session is closed');
$host->configure(sshIdleTimeoutMs => 0);
ok($host->acquire(ssh_config($sshd), company => 'never idle')->{result}, 'an acquire with no idle time');
wait_until('its session is closed',
	sub { !grep { $_->{companyId} eq 'never idle' } @{ $host->stats->{sshSessions} } });
pass('... after which the session is closed');
$host->configure(sshIdleTimeoutMs => 60000);

ok($host->acquire(ssh_config($sshd), company => 'shortened')->{result}, 'an acquire with an idle time');
$host->configure(sshIdleTimeoutMs => 1);
wait_until('its session is closed', sub { !@{ $host->stats->{sshSessions} } }, 10);
pass('an idle time that is shortened counts for sessions that idle already');
$host->configure(sshIdleTimeoutMs => 60000);

# Statistics.
$answer = $host->acquire(ssh_config($sshd), company => 'stats');
my ($session) = wait_until('the session is idle',
	sub { (grep { $_->{companyId} eq 'stats' && $_->{idleSince} } @{ $host->stats->{sshSessions} })[0] });
is("$session->{user}\@$session->{host}:$session->{port}", $target, 'a session in the statistics');
is($session->{calls}, 1, '... its calls');
is($session->{channels}, 0, '... its channels');
my $stats = $host->stats;
is($stats->{host}{pid}, $host->{pid}, 'the pid in the statistics');
is($stats->{host}{activeCalls}, 0, 'no call is active');

# Too many calls: of one company, which leaves room for others, and of all.
my $stuck = EnvrtFixture::Silent->new->start;
$host->configure(maxCalls => 5);
$client = $host->connect;
$client->send_call('environmentAcquireLease', HostTest::request(ssh_config($sshd, port => $stuck->port)))
  for 1 .. 3;
my $last = $client->call('environmentAcquireLease', HostTest::request(ssh_config($sshd)));
is_error($last, '53400', qr/busy with 3 calls of this company, its share/, 'more calls than a company may have');
ok($client->call('environmentAcquireLease', HostTest::request(ssh_config($sshd), company => 'company-2'))->{result}, '... where another one has its own');
{
	my $others = $host->connect;

	$others->send_call('environmentAcquireLease', HostTest::request(ssh_config($sshd, port => $stuck->port), company => "company-$_"))
	  for 2 .. 3;
	is_error($others->call('environmentAcquireLease', HostTest::request(ssh_config($sshd), company => 'company-4')), '53400', qr/busy with 5 calls, its limit/, 'more calls than allowed');
	$others->close;
	wait_until('the calls of the others are gone', sub { @{ $host->stats->{calls} } == 3 });
}
$stats = $host->stats;
is(scalar @{ $stats->{calls} }, 3, 'calls in the statistics');
is($stats->{calls}[0]{target}, "$user\@127.0.0.1:" . $stuck->port, '... their target');
$client->close;
wait_until('the calls are gone', sub { !@{ $host->stats->{calls} } });
wait_until('the connection is dropped', sub { $stuck->open_connections == 0 });
pass('a client that goes takes its calls and their connection with it');
$host->configure(maxCalls => 500);

# Memory: a hundred acquires after a warm-up.
$host->acquire(ssh_config($sshd)) for 1 .. 20;
my $start = $host->stats->{host}{rssBytes};
$host->acquire(ssh_config($sshd)) for 1 .. 100;
my $grown = $host->stats->{host}{rssBytes} - $start;
SKIP:
{
	skip 'a sanitizer keeps what is freed', 1 if ($ENV{ENVRT_DRIVER_HOST} // '') =~ /address/;
	cmp_ok($grown, '<', 256 * 1024, 'a hundred acquires leave the memory where it was');
}

is($host->terminate, 0, 'SIGTERM ends it in order');
unlike($host->log_text, qr/Sanitizer|runtime error/, 'no finding of a sanitizer');
ok(!-e "$host->{directory}/envrt_host.sock", 'its socket is gone');

done_testing();
