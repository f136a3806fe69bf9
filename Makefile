# envrt: see README.md.  Needs libsodium, jansson, libuv, libssh, libseccomp and libarchive (their -dev
# packages).

EXTENSION = envrt
EXTVERSION = $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" envrt.control)

MODULE_big = envrt
SHARED_SOURCES = $(wildcard src/shared/*.c)
OBJS = $(patsubst %.c,%.o,$(wildcard src/ext/*.c src/ext/*/*.c) $(SHARED_SOURCES))
SHLIB_LINK = -lsodium -ljansson

DATA_built = sql/envrt--$(EXTVERSION).sql
DATA = $(wildcard sql/envrt--*--*.sql)

HOST = envrt_driver_host
HOST_LIBS = -luv -lssh -lsodium -ljansson -lseccomp -lm
# For example SANITIZE=address,undefined: builds the driver host (only) with these sanitizers.
SANITIZE =
# Only there its assertions are checked, as a server's are with --enable-cassert: an end of the host is an end
# of what it does for everybody.
HOST_FLAGS = $(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-omit-frame-pointer -g -O1,-DNDEBUG)
# Its objects, also those of src/shared, are its own and of one kind.
comma = ,
HOST_BUILD = build/host$(if $(SANITIZE),-$(subst $(comma),-,$(SANITIZE)))
HOST_SOURCES = $(wildcard src/host/*.c src/host/*/*.c)
HOST_OBJS = $(patsubst src/%.c,$(HOST_BUILD)/%.o,$(HOST_SOURCES) $(SHARED_SOURCES))

# Seals a secret at a client; a program for people.
SEAL = envrt-seal

# One end of a transfer of files; beside the driver host.
FILES = envrt_files
FILES_SOURCES = $(wildcard src/files/*.c)

REGRESS_OPTS = --inputdir=test --outputdir=build/regress --load-extension=envrt
ISOLATION_OPTS = --inputdir=test --outputdir=build/isolation --load-extension=envrt
# contract_ssh needs the sshd that test/all starts.
REGRESS = $(filter-out $(if $(ENVRT_TEST_SSH_PORT),,contract_ssh),$(patsubst test/sql/%.sql,%,$(sort $(wildcard test/sql/*.sql))))
ISOLATION = $(patsubst test/specs/%.spec,%,$(sort $(wildcard test/specs/*.spec)))
PROVE_TESTS = test/t/*.pl
TAP_TESTS = 1

# The compiler writes beside each object which headers it was made of.
DEPENDENCY_FLAGS = -MMD -MP
PG_CPPFLAGS = -Isrc -Isrc/ext $(DEPENDENCY_FLAGS) $(WARNINGS)
# Set by `make check-warnings` and the test run; users of other compilers are not stopped by a new warning.
WARNINGS =

EXTRA_CLEAN = $(HOST) $(FILES) $(SEAL) $(OBJS:.o=.d) build

PG_CONFIG ?= $(firstword $(wildcard /usr/lib/postgresql/15/bin/pg_config) pg_config)
PGXS := $(shell $(PG_CONFIG) --pgxs)
override with_llvm = no
include $(PGXS)

all: $(HOST) $(FILES) $(SEAL)

# Made of one kind or the other by turns, it can't be judged by its age.
$(HOST): $(HOST_BUILD)/$(HOST) FORCE
	@cmp -s $< $@ || { echo "cp $< $@"; cp $< $@; }

.PHONY: FORCE
FORCE:

# The first process of each sandbox runs in any image, so it is static, and comes as a part of the host.
build/sandbox_init: src/sandbox_init/sandbox_init.c src/shared/sandbox_spec.h
	@$(MKDIR_P) $(@D)
	$(CC) -std=gnu11 -O2 $(WARNINGS) -static -s -D_GNU_SOURCE -Isrc -o $@ $<

build/sandbox_init.o: build/sandbox_init
	cd build && ld -r -b binary -z noexecstack -o sandbox_init.o sandbox_init

# Never with sanitizers: they need more memory than a sandbox gives.
$(FILES): $(FILES_SOURCES) $(wildcard src/files/*.h) src/shared/files_protocol.h
	$(CC) -std=gnu11 -O2 -g $(WARNINGS) -D_GNU_SOURCE -Isrc -o $@ $(FILES_SOURCES) -larchive

$(SEAL): src/seal/envrt_seal.c
	$(CC) -std=gnu11 -O2 -g $(WARNINGS) -D_GNU_SOURCE -o $@ $< -lsodium -ljansson

# The host looks for it where it is itself.
$(HOST_BUILD)/$(FILES): $(FILES)
	@$(MKDIR_P) $(@D)
	cp $< $@

$(HOST_BUILD)/$(HOST): $(HOST_BUILD)/$(FILES)

$(HOST_BUILD)/$(HOST): $(HOST_OBJS) build/sandbox_init.o
	$(CC) $(CFLAGS) $(HOST_FLAGS) -o $@ $(filter %.o,$^) $(LDFLAGS) $(HOST_LIBS)

$(HOST_OBJS): $(HOST_BUILD)/%.o: src/%.c
	@$(MKDIR_P) $(@D)
	$(CC) $(filter-out -I% ,$(CFLAGS)) $(WARNINGS) $(HOST_FLAGS) -D_GNU_SOURCE -Isrc -Isrc/host $(DEPENDENCY_FLAGS) -c -o $@ $<

-include $(OBJS:.o=.d) $(HOST_OBJS:.o=.d)

sql/envrt--$(EXTVERSION).sql: sql/envrt.sql
	cp $< $@

install: install-programs
uninstall: uninstall-programs

.PHONY: install-programs uninstall-programs
install-programs: $(HOST) $(FILES) $(SEAL)
	$(MKDIR_P) '$(DESTDIR)$(pkglibdir)'
	$(INSTALL_PROGRAM) $(HOST) '$(DESTDIR)$(pkglibdir)/$(HOST)'
	$(INSTALL_PROGRAM) $(FILES) '$(DESTDIR)$(pkglibdir)/$(FILES)'
	$(MKDIR_P) '$(DESTDIR)$(bindir)'
	$(INSTALL_PROGRAM) $(SEAL) '$(DESTDIR)$(bindir)/$(SEAL)'

uninstall-programs:
	rm -f '$(DESTDIR)$(pkglibdir)/$(HOST)' '$(DESTDIR)$(pkglibdir)/$(FILES)' '$(DESTDIR)$(bindir)/$(SEAL)'

include test/tests.mk
include test/host/host.mk
