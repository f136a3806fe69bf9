#!/usr/bin/perl
# tools/check-layers says what is wrong in a tree that somebody has broken.

use strict;
use warnings;

use File::Basename;
use File::Path qw(make_path);
use File::Temp;
use Test::More;

my $copy = File::Temp->newdir;
my @objects = glob 'build/host/host/*.o build/host/host/*/*.o build/host/shared/*.o';

sub slurp
{
	open my $file, '<', $_[0] or die "can't read $_[0]: $!";
	local $/;
	return scalar <$file>;
}

sub spew
{
	open my $file, '>', $_[0] or die "can't write $_[0]: $!";
	print $file $_[1];
	close $file or die "can't write $_[0]: $!";
}

sub run
{
	my @command = @_;

	system(@command) == 0 or die "@command: status $?";
}

# What check-layers says of the copy; objects and headers only where they matter.
sub check
{
	my ($with_objects, $flags) = @_;
	my @arguments = map { "--flags $_" } @{ $flags // [] };

	push @arguments, 'host=' . join ',', map { s{^build/host/}{obj/}r } @objects if $with_objects;
	my $output = `cd $copy && tools/check-layers @arguments 2>&1`;
	return ($? >> 8, $output);
}

# Breaks one file, looks, and mends it.
sub broken
{
	my ($name, $path, $change, $expected, %options) = @_;
	my $file = "$copy/$path";
	my $before = -e $file ? slurp($file) : undef;
	my $object = $path =~ s{^src/(.*)\.c$}{obj/$1.o}r;

	spew($file, $change->($before // ''));
	run('gcc', '-D_GNU_SOURCE', "-I$copy/src", "-I$copy/src/host", '-c', '-o', "$copy/$object", $file) if $options{compile};
	my ($status, $output) = check($options{compile}, $options{flags});
	is($status, 1, "$name: refused");
	like($output, $expected, "$name: ... and told");
	defined $before ? spew($file, $before) : unlink $file;
	run('cp', "build/host/" . ($object =~ s{^obj/}{}r), "$copy/$object") if $options{compile};
}

run('cp', '-r', 'tools', 'src', $copy);
for my $object (@objects)
{
	my $to = "$copy/" . ($object =~ s{^build/host/}{obj/}r);

	make_path(dirname($to));
	run('cp', $object, $to);
}
my @flags = ("'host=-Isrc -Isrc/host'");
my ($status, $output) = check(1, \@flags);
is($status, 0, 'the tree as it is') or diag($output);

my $append = sub { my $text = shift; return sub { $_[0] . $text } };

broken('an include of a higher layer', 'src/ext/base/json.c', $append->(qq(#include "ledger/ledger.h"\n)),
	qr{src/ext/base/json\.c: includes "ledger/ledger\.h", which is not in a lower layer});
broken('an include of a sibling', 'src/host/ssh/glob.c', $append->(qq(#include "sandbox/sandbox_config.h"\n)),
	qr{src/host/ssh/glob\.c: includes "sandbox/sandbox_config\.h"});
broken('an include of another program', 'src/files/pack.c', $append->(qq(#include "host/base/timer.h"\n)),
	qr{src/files/pack\.c: includes "host/base/timer\.h"});
broken('an include without a folder', 'src/ext/ledger/settle.c', $append->(qq(#include "ledger.h"\n)),
	qr{src/ext/ledger/settle\.c: "ledger\.h" is not named by its folder});
broken('PostgreSQL in what is shared', 'src/shared/target.c', $append->(qq(#include "postgres.h"\n)),
	qr{shared/ knows neither PostgreSQL nor libuv});
broken('a use of a higher layer', 'src/host/base/latency.c',
	$append->("extern void calls_set_max(unsigned long max);\nvoid latency_wrong(void);\nvoid latency_wrong(void)\n{\n\tcalls_set_max(1);\n}\n"),
	qr{src/host/base/latency\.c: uses calls_set_max of src/host/calls/call\.c}, compile => 1);
broken('a circle', 'src/host/base/memory.c',
	$append->("extern void timer_stop(void *timer);\nvoid memory_wrong(void);\nvoid memory_wrong(void)\n{\n\ttimer_stop(0);\n}\n"),
	qr{a circle: src/host/base/memory\.c uses src/host/base/timer\.c \(timer_stop\)}, compile => 1);
broken('a function declared elsewhere', 'src/host/base/timer.h', sub { $_[0] =~ s/(?=\n#endif\s*$)/\nextern void not_of_timer(void);\n/r },
	qr{timer\.h: not_of_timer\(\) is not defined in src/host/base/timer\.c});
broken('a header that needs another', 'src/host/base/timer.h', sub { $_[0] =~ s/(?=\n#endif\s*$)/\ntypedef SomebodyElses TimerNumber;\n/r },
	qr{src/host/base/timer\.h: does not compile alone}, flags => \@flags);
broken('two files of one name', 'src/host/ssh/timer.c', $append->("/* timer.c */\n"),
	qr{two files of one name: src/host/base/timer\.c src/host/ssh/timer\.c});
broken('a static function of one name', 'src/host/base/latency.c',
	sub { my ($static) = slurp('src/host/ssh/ssh_pool.c') =~ /^static [^\n]*\n(\w+)\(/m; $_[0] . "static void\n$static(void)\n{\n}\n" },
	qr{static \w+\(\) in several files: src/host/base/latency\.c src/host/ssh/ssh_pool\.c});
broken('a struct of two programs', 'src/files/pack.c',
	sub { my ($struct) = slurp('src/host/calls/call.h') =~ /^typedef struct (\w+)\n\{/m; $_[0] . "struct $struct\n{\n\tint x;\n};\n" },
	qr{two programs have a \w+: src/files/pack\.c src/host/calls/call\.h});
make_path("$copy/src/host/elsewhere");
broken('a new folder', 'src/host/elsewhere/thing.c', $append->("/* thing.c */\n"), qr{thing\.c: no folder of src/LAYERS});

done_testing();
