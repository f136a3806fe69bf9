#!/usr/bin/perl
# Finding plugins: manifests of both kinds, folders that come and go, and what must never be run.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use HostTest;
use JSON::PP ();
use Test::More;

my $json = JSON::PP->new->utf8->canonical;
my $rude = "$FindBin::RealBin/plugins/rude/worker";
my $has_node = system('node --version >/dev/null 2>&1') == 0;

sub manifest
{
	my ($id, %other) = @_;

	return {
		id => $id,
		version => '1',
		capabilities => ['environment.drivers.register'],
		entrypoints => { worker => 'worker' },
		environmentDrivers => [ { driverKey => $id, kind => 'sandbox_provider', configSchema => { type => 'object' } } ],
		%other
	};
}

sub folder
{
	my ($path, $manifest) = @_;

	mkdir $path;
	spew("$path/manifest.json", $json->encode($manifest));
	spew("$path/worker", slurp($rude), 0755);
	return;
}

# As the SDK's tools make it: a module.
sub module_folder
{
	my ($path, $manifest, $script) = @_;

	mkdir $_ for $path, "$path/dist";
	spew("$path/package.json",
		$json->encode({ name => 'x', type => 'module', paperclipPlugin => { manifest => './dist/manifest.js', worker => './dist/worker' } }));
	spew("$path/dist/manifest.js", $script // 'export default ' . $json->encode($manifest) . ';');
	spew("$path/dist/worker", slurp($rude), 0755);
	return;
}

sub entries
{
	my ($host, $method) = @_;

	return { map { ($_->{path} =~ m{([^/]+)$})[0] => $_ } @{ $host->call($method // 'envrt/plugins', {})->{result}{plugins} } };
}

sub probe
{
	my ($host, $key, $act) = @_;

	return $host->call('environmentProbe', { driverKey => $key, companyId => 'c', environmentId => 'e', config => { act => $act // 'pid' } });
}

sub is_running { return EnvrtFixture::is_alive($_[0]) }

my $path = temporary_directory();

# The list.
folder("$path/a", manifest('one', displayName => 'The first'));
folder("$path/b", manifest('one'));
folder("$path/c", manifest('two', capabilities => []));
mkdir "$path/d";
mkdir "$path/e";
spew("$path/e/package.json", '{"name":"some-other-package"}');
my $host = start_host(plugins => [$path]);
{
	my $list = entries($host);

	is_deeply([ sort keys %$list ], [qw(a b c)], 'folders with plugins, good and bad');
	is_deeply(
		$list->{a},
		{
			key => 'one', version => '1', displayName => 'The first', path => "$path/a", state => 'idle', pid => undef,
			restarts => 0, lastError => undef, calls => 0, failedCalls => 0, activeCalls => 0, startedAt => undef,
			manifest => manifest('one', displayName => 'The first')
		},
		'all of a plugin');
	is_deeply(
		$list->{b},
		{
			key => 'one', version => undef, displayName => undef, path => "$path/b", state => 'invalid', pid => undef,
			restarts => 0, lastError => "$path/a has the same id \"one\"", calls => 0, failedCalls => 0, activeCalls => 0,
			startedAt => undef, manifest => undef
		},
		'a second one of that id');
	is($list->{c}{state}, 'invalid', 'one with a bad manifest');
	is($list->{c}{key}, 'two', '... has its key');
	is($list->{c}{lastError}, "Capability 'environment.drivers.register' is required when environmentDrivers are declared",
		'... and what is wrong');
	is_deeply([ map { $_->{key} } @{ $host->stats->{plugins} } ], ['one'], 'statistics are of what can be used');
	my $pid = probe($host, 'one')->{result};
	probe($host, 'one', 'no words');
	$list = entries($host);
	is($list->{a}{pid}, $pid, 'the worker\'s process id');
	is("$list->{a}{calls} $list->{a}{failedCalls}", '2 1', '... and calls, and those that failed');
	cmp_ok(abs($list->{a}{startedAt} / 1000 - time), '<', 600, '... and when it was started');
}

# Reading anew.
{
	my $pid = probe($host, 'one')->{result};

	is(entries($host, 'envrt/reloadPlugins')->{a}{pid}, $pid, 'who has not changed keeps the worker');
	folder("$path/c", manifest('two'));
	is(entries($host)->{c}{state}, 'invalid', 'nothing is read without need');
	is(entries($host, 'envrt/reloadPlugins')->{c}{state}, 'idle', 'a plugin that was repaired');
	my $client = $host->connect;
	my $waiting = $client->send_call('environmentProbe', { driverKey => 'one', config => { act => 'order' } });
	wait_until('it is sent', sub { entries($host)->{a}{activeCalls} == 1 });
	unlink "$path/a/worker";
	spew("$path/a/worker", slurp($rude) . "# another\n", 0755);
	my $list = entries($host, 'envrt/reloadPlugins');
	is($list->{a}{pid}, undef, 'a plugin whose worker has changed starts anew');
	my $new = probe($host, 'one')->{result};
	isnt($new, $pid, '... in another process');
	ok(is_running($pid), '... while the old one has calls');
	$client->close;
	wait_until('it is gone', sub { !is_running($pid) });
	pass('... and ends after them');
	unlink glob "$path/a/*";
	is(entries($host, 'envrt/reloadPlugins')->{b}{state}, 'idle', 'a rival takes the place of one that is gone');
	wait_until('it is gone', sub { !is_running($new) });
	pass('... whose worker ends');
}

# Restarting.
{
	my $pid = probe($host, 'one')->{result};
	my $client = $host->connect;
	my $first = $client->send_call('environmentProbe', { driverKey => 'one', config => { act => 'order' } });

	wait_until('it is sent', sub { entries($host)->{b}{activeCalls} == 1 });
	is_deeply($host->call('envrt/restartPlugin', { key => 'one' })->{result}, undef, 'a restart');
	is(entries($host)->{b}{state}, 'stopping', '... waits for what the worker was sent');
	my $second = $client->send_call('environmentProbe', { driverKey => 'one', config => { act => 'pid' } });
	ok(is_running($pid), '... it runs');
	kill 'KILL', $pid;
	is_error($client->answer($first), '38000', qr/ended during the call/, '... and if it does not answer, that call fails');
	my $new = $client->answer($second)->{result};
	isnt($new, $pid, '... and who came later is served by the next one');
	is(entries($host)->{b}{lastError}, undef, '... which is no crash');
	$host->call('envrt/restartPlugin', { key => 'one' });
	wait_until('it is gone', sub { !is_running($new) });
	probe($host, 'one', 'exit') for 1 .. 2;
	is_error(
		$host->call('environmentProbe', { driverKey => 'one', companyId => 'c', config => { act => 'pid' }, limits => { callMs => 100 } }),
		'38000', qr/^Plugin "one" has no running worker$/, 'after crashes the company whose calls it had has to wait');
	$host->call('envrt/restartPlugin', { key => 'one' });
	ok(probe($host, 'one')->{result}, '... but not after a restart');
	is_error($host->call('envrt/restartPlugin', { key => 'nobody' }), '42704', qr/^No plugin "nobody" is installed\.$/, 'no such plugin');
	is_error($host->call('envrt/restartPlugin', {}), '22023', qr/key is missing/, 'no key');
}
is($host->terminate, 0, 'the host ends in order');

# Manifests that are modules.
SKIP:
{
	skip 'there is no node', 15 if !$has_node;
	my $modules = temporary_directory();

	module_folder("$modules/good", manifest('good'));
	module_folder("$modules/noisy", undef,
		'console.log("{}"); console.error("e"); const d = ' . $json->encode(manifest('noisy', entrypoints => { worker => './dist/worker' }))
		  . '; export { d as default };');
	module_folder("$modules/none", undef, 'export const x = 1;');
	module_folder("$modules/throws", undef, 'throw new Error("no luck today");');
	module_folder("$modules/floods", undef, 'for (;;) { console.log("x".repeat(100000)); await new Promise((r) => setImmediate(r)); }');
	module_folder("$modules/large", undef, 'export default { id: "x".repeat(2000000) };');
	module_folder("$modules/environment", undef,
		'export default { id: "environment", version: Object.keys(process.env).sort().join(), displayName: process.cwd().slice(-11), entrypoints: { worker: "dist/worker" } };');
	mkdir $_ for "$modules/cjs", "$modules/cjs/dist";
	spew("$modules/cjs/package.json", $json->encode({ paperclipPlugin => { manifest => 'dist/manifest.cjs' } }));
	spew("$modules/cjs/dist/manifest.cjs", 'exports.default = ' . $json->encode(manifest('cjs')));
	spew("$modules/cjs/worker", slurp($rude), 0755);
	mkdir $_ for "$modules/text", "$modules/outside", "$modules/odd";
	spew("$modules/text/package.json", $json->encode({ paperclipPlugin => { manifest => 'm.json' } }));
	spew("$modules/text/m.json", $json->encode(manifest('text')));
	spew("$modules/text/worker", slurp($rude), 0755);
	spew("$modules/outside/package.json", $json->encode({ paperclipPlugin => { manifest => '../good/dist/manifest.js' } }));
	spew("$modules/odd/package.json", $json->encode({ paperclipPlugin => 'yes' }));
	local $ENV{SECRET_OF_THE_SERVER} = 'x';
	local $ENV{NODE_OPTIONS} = '--no-such-option';
	$host = start_host(plugins => [$modules]);
	my $client = $host->connect;
	my @ids = map { $client->send_call('environmentProbe', { driverKey => $_, config => { act => 'pid' } }) } qw(good noisy cjs text);
	cmp_ok(elapsed(sub { $host->stats }), '<', 5, 'the host goes on while manifests are read');
	like($client->answer($ids[0])->{result}, qr/^\d+$/, 'a manifest that is a module; the call waits for it');
	like($client->answer($ids[1])->{result}, qr/^\d+$/, '... that prints');
	like($client->answer($ids[2])->{result}, qr/^\d+$/, '... of the older kind');
	like($client->answer($ids[3])->{result}, qr/^\d+$/, '... that is a text all the same');
	my $list = entries($host);
	like($list->{none}{lastError}, qr/exited with status 1: .*no default export/s, 'a module without a manifest');
	like($list->{throws}{lastError}, qr/exited with status 1: .*no luck today/s, 'a module that throws');
	like($list->{floods}{lastError}, qr/printed too much/, 'a module that prints without end');
	like($list->{large}{lastError}, qr/printed too much/, 'a module with a huge manifest');
	is($list->{outside}{lastError}, 'paperclipPlugin.manifest must be a path within the folder', 'a module elsewhere');
	is($list->{odd}{lastError}, 'paperclipPlugin.manifest is missing or no text', 'a package that names none');
	is("$list->{environment}{version} $list->{environment}{displayName}", 'NODE_ENV,NODE_PATH,PAPERCLIP_PLUGIN_ID,PATH,TZ environment',
		'a module has the environment of workers, and its folder');
	my $gone = $host->connect;
	$gone->send_call('envrt/reloadPlugins', {});
	$gone->close;
	is(entries($host, 'envrt/reloadPlugins')->{good}{state}, 'running', 'two reloads at once, of which one nobody waits for');
	module_folder("$modules/good", manifest('good', version => '2'));
	is(entries($host, 'envrt/reloadPlugins')->{good}{version}, '2', 'a module that has changed');
	$host->connect->send_call('envrt/reloadPlugins', {});
	is($host->terminate, 0, 'the host ends in order while it reads');
}

# A module that takes long, and one that fails, are nobody else's trouble.
SKIP:
{
	skip 'there is no node', 1 if !$has_node;
	my $modules = temporary_directory();
	my $runs = "$modules/.runs";

	folder("$modules/good", manifest('good'));
	module_folder("$modules/fails", undef, "import fs from 'node:fs'; fs.appendFileSync('$runs', 'x'); throw new Error('no luck ' + process.pid);");
	$host = start_host(plugins => [$modules]);
	ok(probe($host, 'good')->{result}, 'a plugin beside one that fails');
	# Another reading, more than a second after the first.
	wait_until('a plugin that was installed meanwhile is found', sub {
			folder("$modules/new", manifest('new')) if !-e "$modules/new";
			return probe($host, 'new')->{result};
		});
	is(-s $runs, 1, '... and what failed is not run again for it');
	entries($host, 'envrt/reloadPlugins');
	is(-s $runs, 2, '... but for a reload');
	my $said = () = slurp($host->{stderr}) =~ /the plugin in \S+fails is left out/g;
	is($said, 1, '... and the log hears of it once');
	module_folder("$modules/slow", undef, 'await new Promise((r) => setTimeout(r, 60000));');
	my $client = $host->connect;
	my $reload = $client->send_call('envrt/reloadPlugins', {});
	wait_until('it is being read', sub { 1 == grep { $_->{method} eq 'envrt/reloadPlugins' } @{ $host->stats->{calls} } });
	cmp_ok(elapsed(sub { ok(probe($host, 'good')->{result}, 'a plugin while another one is read') }), '<', 5, '... does not wait');
	cmp_ok(elapsed(sub { is_deeply($host->call('envrt/findPlugin', { driverKey => 'good' })->{result}, { pluginKey => 'good' }, 'nor does who asks whose a driver is') }), '<', 5, '... which is known');
	cmp_ok(elapsed(sub {
				is(entries($host, 'envrt/plugins')->{good}{state}, 'running', 'nor who asks what there is');
				ok(exists $host->call('envrt/pluginMetrics', {})->{result}, '... what plugins have reported');
				ok(exists $host->call('envrt/restartPlugin', { key => 'good' })->{result}, '... or has one restarted');
			}), '<', 5, '... that is known');
	# Who waits is not put off by the next reload.
	my $late = $host->connect;
	my $next = $late->send_call('envrt/reloadPlugins', {});
	my $first;
	my $took = elapsed(sub { $first = $client->answer($reload) });
	cmp_ok($took, '<', 25, 'a reload is answered though another one has begun');
	ok(!exists $late->{answers}{$next} && 1 == grep({ $_->{method} eq 'envrt/reloadPlugins' } @{ $host->stats->{calls} }), '... which is not');
	$_->close for $client, $late;
	is($host->terminate, 0, 'the host ends in order');
}

# Whose a provider is.
{
	my $several = temporary_directory();
	my $find = sub { return $host->call('envrt/findPlugin', {@_}) };

	folder("$several/$_", { %{ manifest($_) }, environmentDrivers => [ { driverKey => 'vm', kind => 'sandbox_provider' }, { driverKey => 'other' } ] }) for qw(a b);
	$host = start_host(plugins => [$several]);
	is_deeply($find->(driverKey => 'vm')->{result}, { pluginKey => 'a' }, 'the first plugin that has a provider');
	is_deeply($find->(driverKey => 'vm', pluginsOff => ['a'])->{result}, { pluginKey => 'b' }, '... and may be used');
	is_deeply($find->(driverKey => 'vm', pluginsOff => [qw(a b)])->{result}, { pluginKey => undef }, '... if there is one');
	is_deeply($find->(driverKey => 'other')->{result}, { pluginKey => undef }, '... that is no driver of another kind');
	is_error($find->(), '22023', qr/driverKey is missing/, 'whose nothing is');
	wait_until('a provider that was installed meanwhile is found', sub {
			folder("$several/c", { %{ manifest('c') }, environmentDrivers => [ { driverKey => 'new', kind => 'sandbox_provider' } ] }) if !-e "$several/c";
			return $find->(driverKey => 'new')->{result}{pluginKey};
		});
	is($host->terminate, 0, 'the host ends in order');
}

# Odd names, and more than one line can hold.
{
	my $many = temporary_directory();

	folder("$many/bad-\xff", manifest('two', capabilities => []));
	folder("$many/good-\xff", manifest('good'));
	folder("$many/p$_", manifest("p$_", description => 'x' x 900_000)) for 10 .. 29;
	$host = start_host(plugins => [$many]);
	my @list = @{ $host->call('envrt/plugins', {})->{result}{plugins} };
	is(scalar @list, 22, 'a list of plugins whose manifests are too much for one line');
	is(scalar(grep { $_->{manifest} } @list), 10, '... has the first ones');
	is($list[0]{path}, "$many/bad-\x{fffd}", 'a folder whose name is no UTF-8 is listed');
	is($list[1]{path}, "$many/good-\x{fffd}", '... also when it is good');
	is($host->terminate, 0, 'the host ends in order');
}

# Nothing is run that is not below the plugin path.
{
	my $outside = temporary_directory();
	my $inside = temporary_directory();
	my $mark = "$outside/was-run";
	my $script = "#!/bin/sh\ntouch $mark\n";

	spew("$outside/worker", $script, 0755);
	spew("$outside/worker.js", "require('fs').writeFileSync('$mark', '')");
	folder("$outside/plugin", manifest('linked'));
	spew("$outside/plugin/worker", $script, 0755);
	my %worker = (
		absolute => [ "$outside/worker", qr/must be a path within the folder/ ],
		above => [ "../../" . ($outside =~ m{([^/]+)$})[0] . '/worker', qr/must be a path within the folder/ ],
		hidden => [ "x/../../../worker", qr/must be a path within the folder/ ],
		link => [ 'link', qr{leads to \Q$outside\E/worker, out of} ],
		'link-js' => [ 'link.js', qr{leads to \Q$outside\E/worker\.js, out of} ],
		'through' => [ 'directory/worker', qr{leads to \Q$outside\E/worker, out of} ],
		dangling => [ 'dangling', qr/No such file/ ],
		loop => [ 'loop', qr/Too many levels/ ],
		device => [ 'device', qr{leads to /dev/null, out of} ],
		open => [ 'open', qr/can be written by everybody/ ]);
	for my $name (keys %worker)
	{
		my $folder = "$inside/$name";

		folder($folder, manifest($name, entrypoints => { worker => $worker{$name}[0] }));
		symlink "$outside/worker", "$folder/link";
		symlink "$outside/worker.js", "$folder/link.js";
		symlink $outside, "$folder/directory";
		symlink 'nothing', "$folder/dangling";
		symlink 'loop', "$folder/loop";
		symlink '/dev/null', "$folder/device";
		spew("$folder/open", $script, 0777);
	}
	symlink "$outside/plugin", "$inside/whole-folder";
	mkdir "$inside/linked-manifest";
	symlink "$outside/plugin/manifest.json", "$inside/linked-manifest/manifest.json";
	folder("$inside/writable", manifest('writable'));
	chmod 0777, "$inside/writable";
	for my $name (qw(writable-within loosened))
	{
		folder("$inside/$name", manifest($name, entrypoints => { worker => 'dist/worker' }));
		mkdir "$inside/$name/dist";
		spew("$inside/$name/dist/worker", slurp($rude), 0755);
	}
	chmod 0777, "$inside/writable-within/dist";
	folder("$inside/moved", manifest('moved'));
	symlink 'moved', "$inside/neighbour";
	$host = start_host(plugins => [$inside]);
	my $list = entries($host);
	for my $name (sort keys %worker)
	{
		is($list->{$name}{state}, 'invalid', "a worker that is not ours: $name");
		like($list->{$name}{lastError}, $worker{$name}[1], '... and why');
	}
	like($list->{'whole-folder'}{lastError}, qr/leads to .*, out of/, 'a folder that is elsewhere');
	like($list->{'linked-manifest'}{lastError}, qr/leads to .*, out of/, 'a manifest that is elsewhere');
	like($list->{writable}{lastError}, qr/can be written by everybody/, 'a folder that everybody can write');
	like($list->{'writable-within'}{lastError}, qr{writable-within/dist can be written by everybody}, '... or a directory below it');
	chmod 0777, "$inside/loosened/dist";
	my $loose = $host->call('environmentProbe', { driverKey => 'loosened', config => { act => 'pid' }, limits => { callMs => 300 } });
	like($loose->{error}{data}{detail}, qr{could not be started: .*loosened/dist can be written by everybody}, '... also when it came to be so later');
	chmod 0755, "$inside/loosened/dist";
	chmod 0777, $inside;
	$list = entries($host, 'envrt/reloadPlugins');
	like($list->{moved}{lastError}, qr/can be written by everybody/, '... or the directory of the plugin path');
	chmod 0755, $inside;
	$list = entries($host, 'envrt/reloadPlugins');
	is($list->{neighbour}{lastError}, "$inside/moved has the same id \"moved\"", 'a link within the directory is no trouble');
	# What is exchanged after it was looked at.
	rename "$inside/moved/worker", "$inside/moved/worker.old";
	symlink "$outside/worker", "$inside/moved/worker";
	my $answer = $host->call('environmentProbe', { driverKey => 'moved', config => { act => 'pid' }, limits => { callMs => 300 } });
	like($answer->{error}{data}{detail}, qr/could not be started: .* is not there any more/, 'a worker that has become a link is not started');
	for my $key (sort keys %worker, 'linked', 'writable')
	{
		is_error(probe($host, $key), '42704', qr/no matching plugin/, "nobody starts $key");
	}
	# What a call says is no program either.
	for my $odd ('/bin/true', '../worker', "$outside/worker", "moved/../../worker", "\n", '')
	{
		is_error($host->call('environmentProbe', { driverKey => $odd, config => {} }), '42704', qr/./, 'a driver key that is a path');
		is_error($host->call('environmentProbe', { driverKey => 'moved', pluginKey => $odd, config => {} }), '42704', qr/./,
			'a plugin key that is a path');
		is_error($host->call('envrt/restartPlugin', { key => $odd }), '42704', qr/./, '... and to restart one');
	}
	ok(!-e $mark, 'nothing of it was run');
	is($host->terminate, 0, 'the host ends in order');
}

done_testing();
