# Plugins that are written for the published SDK: the sources in test/sdk, compiled with one of its
# versions as the SDK's own tools do it, into build/sdk/VERSION/plugins.
#
#   use EnvrtSdk;
#
#   my $directory = EnvrtSdk::plugins('2026.427.0');   # for envrt.plugin_path
#
# In it are two plugins, envrt.tempdir and envrt.tempdir-keyed, with sandbox providers tempdir and
# tempdir-keyed, and environment drivers tempdir-machine and tempdir-keyed-machine.  What is fetched from
# the registry, by npm as this machine has it configured, is fetched once.

package EnvrtSdk;

use strict;
use warnings;

use Carp qw(croak);
use Cwd qw(abs_path);
use Fcntl qw(:flock);
use File::Basename qw(dirname);
use File::Path qw(make_path remove_tree);
use JSON::PP ();
use POSIX ();

our @versions = ('2026.427.0', '2026.916.1');

my $esbuild = '0.25.12';
my $top = abs_path(dirname(__FILE__) . '/../..');
my $json = JSON::PP->new->utf8->canonical;

sub run
{
	my (@command) = @_;
	my $pid = open(my $out, '-|') // croak "can't fork: $!";

	if (!$pid)
	{
		open STDIN, '<', '/dev/null';
		open STDERR, '>&', \*STDOUT;
		exec @command or print "can't run $command[0]: $!\n";
		POSIX::_exit(127);
	}
	my $text = do { local $/; <$out> } // '';
	close $out or die "@command failed:\n$text";
	return;
}

sub write_file
{
	my ($path, $text) = @_;

	open my $file, '>:raw', $path or croak "can't write $path: $!";
	print $file $text;
	close $file or croak "can't write $path: $!";
	return;
}

# Packages into a directory of their own, all or nothing.
sub install
{
	my ($directory, %packages) = @_;

	return if -e "$directory/complete";
	remove_tree($directory);
	make_path($directory);
	write_file("$directory/package.json", $json->encode({ name => 'build', private => JSON::PP::true, dependencies => \%packages }));
	# Binaries come as packages; no script of a package is run.
	run('npm', 'install', '--prefix', $directory, '--ignore-scripts', '--no-audit', '--no-fund', '--no-package-lock', '--loglevel=error');
	write_file("$directory/complete", '');
	return;
}

sub compile
{
	my ($version, $variant, $folder) = @_;
	my $modules = "$top/build/sdk/$version/node_modules";

	make_path("$folder/dist");
	# As the presets of the SDK have it, but for the version of node, and that nothing is left outside.
	for my $entry (qw(manifest worker))
	{
		my $made = "$folder/dist/$entry.js";

		# A plugin whose worker has not changed is the same plugin.
		next if -e $made && -M $made < -M "$top/test/sdk/$entry.ts" && -M $made < -M __FILE__;
		local $ENV{NODE_PATH} = $modules;
		run(
			"$top/build/sdk/esbuild/node_modules/.bin/esbuild", "$top/test/sdk/$entry.ts", '--bundle', '--format=esm', '--platform=node',
			'--target=node18', '--sourcemap', "--define:VARIANT=\"$variant\"", "--outfile=$made", '--log-level=warning');
	}
	write_file(
		"$folder/package.json",
		$json->encode({
			name => $variant, version => '1.2.3', type => 'module', private => JSON::PP::true,
			paperclipPlugin => { manifest => './dist/manifest.js', worker => './dist/worker.js' }
		}));
	return;
}

# The directory with the plugins, of this version of the SDK.
sub plugins
{
	my ($version) = @_;
	my $directory = "$top/build/sdk/$version";

	make_path("$top/build/sdk");
	open my $lock, '>', "$top/build/sdk/lock" or croak "can't open the lock: $!";
	flock $lock, LOCK_EX or croak "can't lock: $!";
	install("$top/build/sdk/esbuild", esbuild => $esbuild);
	install($directory, '@paperclipai/plugin-sdk' => $version);
	for my $variant (qw(tempdir tempdir-keyed))
	{
		compile($version, $variant, "$directory/plugins/$variant");
	}
	close $lock;
	return "$directory/plugins";
}

1;
