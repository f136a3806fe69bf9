# The ssh driver through SQL, against a real sshd: keys, host keys, workspace, API discovery, pooling.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use Test::More;
use EnvrtTest;

my $api = EnvrtFixture::Health->new->start;
my $api6 = has_ipv6() ? EnvrtFixture::Health->new->start : undef;
my $sshd = EnvrtFixture::Sshd->new->start;
my $node = new_cluster('ssh', api => $api);
my $company = make_company($node);
my $run = make_run($node, $company);
my $directory = temporary_directory();

# A lease on an environment with that config, or the error.
sub try_lease
{
	my (%config) = @_;
	my $environment = make_ssh_environment($node, $company, $sshd, %config);

	return sql_state($node, "SELECT to_jsonb(l) FROM envrt_acquire_lease('$company', '$environment', '$run') l");
}

sub works
{
	my ($name, %config) = @_;
	my ($state, $out) = try_lease(%config);

	is($state, '00000', $name) or diag $out;
	return $state eq '00000' ? from_json($out) : {};
}

sub refused
{
	my ($name, $expected, $pattern, %config) = @_;
	my ($state, $out) = try_lease(%config);

	is($state, $expected, $name) or diag $out;
	like($out, $pattern, "$name: the message");
	like($out, qr/HINT:  \S/, "$name: a hint") if $expected =~ /^(08|28)/;
	return;
}

sub set
{
	my (%settings) = @_;

	$node->append_conf('postgresql.conf', join '', map { "$_ = " . literal($settings{$_}) . "\n" } sort keys %settings);
	my $loaded = $node->safe_psql('postgres', 'SELECT pg_conf_load_time()');
	$node->reload;
	wait_until_sql($node, "SELECT pg_conf_load_time() > '$loaded'");
	# The launcher hands them on to the driver host after its own reload.
	wait_until_sql($node, 'SELECT settings_since > pg_conf_load_time() FROM envrt.stat_driver_host');
	return;
}

# Keys
works("a $_ key", key => "user_$_") for qw(ed25519 ecdsa rsa);
works('a key with its certificate', privateKey => $sshd->keys->text_with_certificate) if $sshd->keys->can('text_with_certificate');
works('a key with CRLF line ends', privateKey => $sshd->keys->text('user_ed25519') =~ s/\n/\r\n/gr);
{
	my $encrypted = $sshd->keys->text('user_encrypted');
	my ($state, $out) = sql_state($node,
		"SELECT envrt_create_environment('$company', 'e', 'ssh', " . literal(to_json(ssh_config($sshd, privateKey => $encrypted))) . ')');

	is($state, '22023', 'an encrypted key is refused when it is stored');
	like($out, qr/encrypted with a passphrase/, 'with the reason');
	# ... and when it came in by another way
	my $secret = $node->safe_psql('postgres', "SELECT envrt_create_secret('$company', 'encrypted', " . literal($encrypted) . ')');
	refused('an encrypted key from a secret', '22023', qr/encrypted/, privateKey => undef,
		privateKeySecretRef => { type => 'secret_ref', secretId => $secret, version => 'latest' });
	$secret = $node->safe_psql('postgres', "SELECT envrt_create_secret('$company', 'junk', 'hunter2')");
	my ($junk_state, $junk) = try_lease(privateKey => undef,
		privateKeySecretRef => { type => 'secret_ref', secretId => $secret, version => 'latest' });
	is($junk_state, '22023', 'a secret that is no key');
	unlike($junk, qr/hunter2/, 'is not shown');
	refused('no key at all', '22023', qr/has no private key/, privateKey => undef);
}
{
	my $stranger = $directory . '/stranger';

	EnvrtFixture::run_command('ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', $stranger);
	refused('a key that the server does not know', '28000', qr/127\.0\.0\.1/, privateKey => EnvrtFixture::slurp($stranger));
}

# Host keys
my @types = qw(ed25519 ecdsa rsa);
works("known by its $_ key alone", knownHosts => $sshd->known_hosts(types => [$_])) for @types;
works('known by hashed names', knownHosts => $sshd->known_hosts(hashed => 1));
my ($algorithm, $key) = split ' ', $sshd->keys->text('host_ed25519.pub');
works('known by a wildcard', knownHosts => '[127.0.0.*]:' . $sshd->port . " $algorithm $key");
refused('a negated name', '08004', qr/host key/i, knownHosts => '[127.0.0.*]:' . $sshd->port . ',![127.0.0.1]:' . $sshd->port . " $algorithm $key");
refused('unknown: another port', '08004', qr/host key/i, knownHosts => "127.0.0.1 $algorithm $key");
refused('unknown: nothing known', '08004', qr/host key/i, knownHosts => undef);
refused('revoked', '08004', qr/revoked/, knownHosts => $sshd->known_hosts . '@revoked * ' . "$algorithm $key");
refused('revoked, even without checking', '08004', qr/revoked/, knownHosts => '@revoked * ' . "$algorithm $key", strictHostKeyChecking => JSON::PP::false);
refused('only a certificate authority known', '08004', qr/certificate/, knownHosts => '@cert-authority * ' . "$algorithm $key");
works('unknown, without checking', knownHosts => undef, strictHostKeyChecking => JSON::PP::false);
{
	my $other = EnvrtFixture::Keys->new(temporary_directory());
	my ($state, $out) = try_lease(knownHosts => $sshd->known_hosts(keys => $other));

	is($state, '08004', 'changed');
	like($out, qr/changed/, 'changed: says so');
	like($out, qr/SHA256:/, 'changed: shows the fingerprint');
	my $rsa_only = EnvrtFixture::Sshd->new(host_keys => ['rsa'])->start;
	my ($algorithm, $key) = split ' ', $rsa_only->keys->text('host_ed25519.pub');
	($state, $out) = sql_state($node, 'SELECT envrt_acquire_lease(' . join(', ', map { literal($_) } $company,
			make_ssh_environment($node, $company, $rsa_only, knownHosts => '[127.0.0.1]:' . $rsa_only->port . " $algorithm $key"), $run) . ')');
	is($state, '08004', 'of another type than known');
	like($out, qr/type|ssh-ed25519/, 'of another type: says which is known');
	$rsa_only->stop;
}

# Addresses
my $lease = works('by name', host => 'localhost');
like($lease->{provider_lease_id}, qr{^ssh://[^@]+\@localhost:}, 'the lease names it so');
SKIP:
{
	skip 'no IPv6 here', 3 unless has_ipv6();
	$lease = works('by IPv6', host => '::1');
	like($lease->{provider_lease_id}, qr{^ssh://[^@]+\@\[::1\]:\d+/}, 'the lease names it in brackets');
	works('by IPv6 in brackets', host => '[::1]');
}
refused('a name that does not resolve', '08001', qr/does-not-exist\.invalid/, host => 'does-not-exist.invalid');
refused('a closed port', '08001', qr/refused/i, port => 0 + EnvrtFixture::free_port('127.0.0.1'));

# Workspaces: whatever the path, it arrives byte for byte and is made
for my $name ('plain', 'with space', "quote's", 'double"quote', '$HOME `id` $(id)', "new\nline", '-dash', 'ünïcödé 漢字', '*?[x]', 'back\\slash', '!bang', '~', ';exit', '%s%n')
{
	my $path = "$directory/w/$name/deep";
	my $shown = $name =~ s/\n/\\n/r;
	my $bytes = $path;

	utf8::encode($bytes) if utf8::is_utf8($bytes);
	$lease = works("workspace $shown", remoteWorkspacePath => $path);
	ok(-d $bytes, "workspace $shown: made");
	is($lease->{metadata}{remoteCwd}, $path, "workspace $shown: resolved");
}
refused('a workspace that is a file', '38000', qr/\S/, remoteWorkspacePath => "$directory/stranger");
refused('a workspace that can not be made', '38000', qr/\S/, remoteWorkspacePath => '/proc/nowhere/at/all');

# Login profiles that talk, before and after, on both streams
{
	my $home = "$directory/home";

	mkdir $home or die $!;
	EnvrtFixture::spew("$home/.bashrc", "echo 'Welcome!'; echo '{\"cwd\": \"/evil\"}'; echo noise >&2; printf 'no newline'; trap 'echo goodbye' EXIT\n");
	my $talking = EnvrtFixture::Sshd->new(extra => ["SetEnv \"HOME=$home\" \"BASH_ENV=$home/.bashrc\""])->start;
	my $environment = make_ssh_environment($node, $company, $talking);
	my $l = acquire($node, $company, $environment, $run);

	is($l->{metadata}{remoteCwd}, $talking->{directory} . '/workspace', 'a talking profile does not confuse it');
	is($l->{metadata}{paperclipApiUrl}, $api->origin, 'nor the API discovery');
	$talking->stop;
}
for my $shell (qw(sh dash bash))
{
	# What sshd would run is <login shell> -c <command>; ForceCommand lets a test choose the shell.
	my $other = EnvrtFixture::Sshd->new(extra => ["ForceCommand exec $shell -c \"\$SSH_ORIGINAL_COMMAND\""])->start;
	my $environment = make_ssh_environment($node, $company, $other, remoteWorkspacePath => $other->{directory} . "/it's \"here\"");
	my $l = acquire($node, $company, $environment, $run);

	is($l->{metadata}{remoteCwd}, $other->{directory} . "/it's \"here\"", "login shell $shell");
	$other->stop;
}

# API discovery: in order, from the remote side, one command for it all
is(works('the API')->{metadata}{paperclipApiUrl}, $api->origin, 'the reachable candidate is in the lease');
my $dead = 'http://127.0.0.1:' . EnvrtFixture::free_port('127.0.0.1');
my $broken = EnvrtFixture::Health->new(status => 500)->start;
set('envrt.runtime_api_candidates' => join ', ', $dead, $broken->origin, $api->origin . '/base/path?x', $api->origin);
my $before = $api->requests;
is(works('with dead candidates in front')->{metadata}{paperclipApiUrl}, $api->origin, 'the first that answers wins');
is($api->requests, $before + 1, 'and is asked once');
ok($broken->requests > 0, 'a failing one is passed over');
set('envrt.runtime_api_candidates' => join ', ', $dead, $broken->origin);
{
	my $environment = make_ssh_environment($node, $company, $sshd);
	my ($state, $out) = sql_state($node, "SELECT envrt_acquire_lease('$company', '$environment', '$run')");

	is($state, '38000', 'no candidate reachable');
	like($out, qr/SSH environment \S+\@127\.0\.0\.1 could not reach any Paperclip API candidates\./, 'with the exact text');
	like($out, qr/\Q$dead\E/, 'and the candidates tried');
	my $nocurl = EnvrtFixture::Sshd->new(extra => ["ForceCommand PATH=$directory/bin exec /bin/sh -c \"\$SSH_ORIGINAL_COMMAND\""])->start;
	mkdir "$directory/bin" or die $!;
	symlink "/bin/$_", "$directory/bin/$_" for qw(sh mkdir);
	$environment = make_ssh_environment($node, $company, $nocurl);
	($state, $out) = sql_state($node, "SELECT envrt_acquire_lease('$company', '$environment', '$run')");
	is($state, '38000', 'no curl on the remote side');
	like($out, qr/curl/, 'says so');
	$nocurl->stop;
}
set('envrt.runtime_api_candidates' => '');
is(works('without candidates')->{metadata}{paperclipApiUrl}, undef, 'there is no discovery');
{
	my $silent_api = EnvrtFixture::Health->new(silent => 1)->start;

	set('envrt.runtime_api_candidates' => join(', ', $silent_api->origin, $api->origin), 'envrt.api_probe_timeout' => '300ms');
	is(works('a candidate that hangs')->{metadata}{paperclipApiUrl}, $api->origin, 'costs its time limit only');
}
is((sql_state($node, "ALTER SYSTEM SET envrt.runtime_api_candidates = 'ftp://x'"))[0], '22023', 'a candidate that is no http URL is refused');

# Where ssh may connect
set('envrt.allowed_hosts' => '10.0.0.0/8, *.example.com');
refused('a host that is not allowed', '42501', qr/envrt\.allowed_hosts/);
set('envrt.allowed_hosts' => '127.0.0.0/8');
works('allowed by network');
set('envrt.allowed_hosts' => 'local*');
works('allowed by name', host => 'localhost');
refused('not by that name', '42501', qr/envrt\.allowed_hosts/);
set('envrt.allowed_hosts' => '');

# One connection for many acquires; never one for two companies
{
	my $pooled = EnvrtFixture::Sshd->new->start;
	my $environment = make_ssh_environment($node, $company, $pooled);

	acquire($node, $company, $environment, $run) for 1 .. 5;
	is($pooled->count_connections, 1, 'five acquires, one connection');
	is($node->safe_psql('postgres', "SELECT calls, channels, idle_since IS NOT NULL, company_id = '$company' FROM envrt.stat_ssh_sessions WHERE port = " . $pooled->port),
		'5|0|t|t', 'as the view shows');
	my $other_company = make_company($node);
	my $other_run = make_run($node, $other_company);
	my $theirs = make_ssh_environment($node, $other_company, $pooled, key => 'user_rsa');
	acquire($node, $other_company, $theirs, $other_run);
	is($pooled->count_connections, 2, 'another company with another key has its own');
	my $same_key = make_ssh_environment($node, make_company($node), $pooled);
	my $third = $node->safe_psql('postgres', "SELECT company_id FROM envrt.environments WHERE id = '$same_key'");
	acquire($node, $third, $same_key, make_run($node, $third));
	is($pooled->count_connections, 3, 'also with the same key');
	my $other_key = make_ssh_environment($node, $company, $pooled, key => 'user_ecdsa');
	acquire($node, $company, $other_key, $run);
	is($pooled->count_connections, 4, 'and another key of the same company');

	# What the pool holds may be gone: it is replaced without a word.
	kill 'KILL', $pooled->sessions;
	is(acquire($node, $company, $environment, $run)->{status}, 'active', 'a dead pooled session is replaced');

	# A rotated key is used from the next acquire on.
	my ($secret) = $node->safe_psql('postgres', "SELECT config -> 'privateKeySecretRef' ->> 'secretId' FROM envrt.environments WHERE id = '$environment'");
	my $stranger = EnvrtFixture::slurp("$directory/stranger");
	$node->safe_psql('postgres', "SELECT envrt_rotate_secret('$secret', " . literal($stranger) . ')');
	is((sql_state($node, "SELECT envrt_acquire_lease('$company', '$environment', '$run')"))[0], '28000', 'after a rotation the old session is of no use');

	set('envrt.ssh_idle_timeout' => '200ms');
	acquire($node, $company, $other_key, $run);
	wait_until('idle sessions to be closed', sub { !$pooled->sessions });
	wait_until_sql($node, 'SELECT count(*) = 0 FROM envrt.stat_ssh_sessions');
	pass('idle sessions are closed');
	$pooled->stop;
}

# No key material is ever written to a file, in the data directory or elsewhere.
is($node->safe_psql('postgres', "SELECT count(*) FROM envrt.environments WHERE config::text LIKE '%PRIVATE KEY%'"), '0', 'no config holds a key');
is($node->safe_psql('postgres', "SELECT string_agg(f, ',' ORDER BY f) FROM pg_ls_dir('pg_envrt') f"), 'instance,master.key,master.key.fingerprint', 'nothing but the master key and who we are in our directory');
is($node->safe_psql('postgres', "SELECT string_agg(f, ',' ORDER BY f) FROM pg_ls_dir('pg_stat_tmp') f WHERE f LIKE 'envrt%'"), 'envrt_host.lock,envrt_host.sock', 'nor in the run directory');

# Probes: a row, whatever happens
{
	my $environment = make_ssh_environment($node, $company, $sshd);
	my $probe = from_json($node->safe_psql('postgres', "SELECT to_jsonb(p) FROM envrt_probe('$environment') p"));
	my $user = $sshd->user;

	is_deeply($probe,
		{ ok => JSON::PP::true, driver => 'ssh', summary => "Connected to $user\@127.0.0.1 and verified the remote workspace path.",
			details => { host => '127.0.0.1', port => 0 + $sshd->port, username => $user, remoteWorkspacePath => "$sshd->{directory}/workspace", remoteCwd => "$sshd->{directory}/workspace" } },
		'a probe that succeeds');
	my $path = "$directory/stranger";
	my $config = ssh_config($sshd, remoteWorkspacePath => $path);
	$probe = from_json($node->safe_psql('postgres', "SELECT to_jsonb(p) FROM envrt_probe_config('$company', 'ssh', " . literal(to_json($config)) . ') p'));
	ok(!$probe->{ok}, 'a probe that fails is a row');
	is($probe->{summary}, "SSH probe failed for $user\@127.0.0.1.", 'with the summary');
	like($probe->{details}{error}, qr/mkdir/, 'what the remote side said');
	cmp_ok($probe->{details}{code}, '>', 0, 'and its exit status');
	$config = ssh_config($sshd, port => 0 + EnvrtFixture::free_port('127.0.0.1'));
	$probe = from_json($node->safe_psql('postgres', "SELECT to_jsonb(p) FROM envrt_probe_config('$company', 'ssh', " . literal(to_json($config)) . ') p'));
	is_deeply([ $probe->{ok}, $probe->{details}{code} ], [ JSON::PP::false, 255 ], 'no connection: code 255');
	like($probe->{details}{hint}, qr/Check the environment's host and port/, '... and what to do');
	is($node->safe_psql('postgres', "SELECT count(*) FROM envrt.company_secrets WHERE name LIKE '%unsaved%'"), '0', 'nothing is stored');
}

# What the remote side says is shown as far as the database's encoding goes.
{
	my $utf8 = EnvrtFixture::Sshd->new(extra => ['ForceCommand printf "%b/etc/passwd%b\\n" "\\342\\200\\230" "\\342\\200\\231" >&2; exit 3'])->start;

	$node->safe_psql('postgres', "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
	$node->safe_psql('latin', 'CREATE EXTENSION envrt');
	my $config = ssh_config($utf8, remoteWorkspacePath => '/w');
	my $sql = <<"SQL";
INSERT INTO envrt.companies (id, name) VALUES ('c0000000-0000-4000-8000-000000000001', 'latin');
INSERT INTO envrt.agents (id, company_id, name) VALUES ('a0000000-0000-4000-8000-000000000001', 'c0000000-0000-4000-8000-000000000001', 'a');
INSERT INTO envrt.heartbeat_runs (id, company_id, agent_id, status) VALUES ('f0000000-0000-4000-8000-000000000001', 'c0000000-0000-4000-8000-000000000001', 'a0000000-0000-4000-8000-000000000001', 'running');
SQL
	$node->safe_psql('latin', $sql);
	my $environment = $node->safe_psql('latin',
		"SELECT id FROM envrt_create_environment('c0000000-0000-4000-8000-000000000001', 'l', 'ssh', " . literal(to_json($config)) . ')');
	my ($state, $text) = sql_state($node,
		"SELECT envrt_acquire_lease('c0000000-0000-4000-8000-000000000001', '$environment', 'f0000000-0000-4000-8000-000000000001')", database => 'latin');
	is($state, '38000', 'a remote message that LATIN1 has no characters for keeps its SQLSTATE');
	like($text, qr{status 3: \?/etc/passwd\?}, 'and is shown with question marks');
	like($node->safe_psql('latin', "SELECT ok, details ->> 'error' FROM envrt_probe('$environment')"), qr{^f\|.*/etc/passwd}, 'a probe is still a row');
	$utf8->stop;
}

# What failed left no lease.
is($node->safe_psql('postgres', "SELECT count(*) FROM envrt.environment_leases WHERE status = 'active' AND provider_lease_id IS NULL"), '0', 'no half lease');
done_testing();
