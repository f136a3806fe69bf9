# Targets of the tests that are not PGXS's own; included by the Makefile.
#
#   check-common   unit tests of src/shared, under the sanitizers, and of tools/
#   check-layers   who may use whom in src/ (src/LAYERS)
#   check-documents   each test is run, and the documents have every object, setting and test
#   fuzz           every test/fuzz/fuzz_*.c for FUZZ_SECONDS each
#   bench          what the extension costs, next to bare SQL and bare libssh
#   test, demo     the same as test/all and test/demo
#   psql           a throwaway server with the fixtures, and psql on it
#   check-chroot   test/all and test/demo on a bare Debian, in a chroot (needs root)
#   check-valgrind   the tests on an assert-enabled server, under valgrind and the sanitizers
#   check-versions   the build, the SQL tests and an upgrade from 15 on other PostgreSQL versions, in chroots (needs root)
#   check-upgrade    the upgrade from 15 to 17 alone

# libssh deprecates by and by what older ones need.
TEST_WARNINGS = -Wall -Wextra -Werror -Wno-deprecated-declarations
TEST_SANITIZE = -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
TEST_CFLAGS = -std=gnu11 -g -O1 -D_GNU_SOURCE -Isrc -Isrc/host -Itest/common $(TEST_WARNINGS) $(TEST_SANITIZE)
TEST_LIBS = $(HOST_LIBS)
TEST_HEADERS = $(wildcard src/shared/*.h src/host/*/*.h test/common/*.h)
PROVE ?= prove

COMMON_TESTS = $(patsubst test/common/%.c,build/%,$(sort $(wildcard test/common/test_*.c)))

# This one watches and fails allocations.
build/test_jsonrpc: TEST_LDFLAGS = -Wl,--wrap=malloc,--wrap=free

$(COMMON_TESTS): build/%: test/common/%.c $(SHARED_SOURCES) $(TEST_HEADERS)
	@mkdir -p build
	$(CC) $(TEST_CFLAGS) -o $@ $< $(SHARED_SOURCES) $(TEST_LDFLAGS) $(TEST_LIBS)

.PHONY: check-common
check-common: $(COMMON_TESTS) $(HOST)
	$(PROVE) --exec '' $(PROVE_FLAGS) $(COMMON_TESTS) test/common/check_layers.t test/common/check_documents.t

# A fuzz target links all of src/shared, and what it names in a line "fuzz: src/host/folder/file.c ...".
FUZZ_CC ?= clang
FUZZ_SECONDS ?= 60
FUZZ_CFLAGS = -std=gnu11 -g -O1 -D_GNU_SOURCE -Isrc -Isrc/host $(TEST_WARNINGS) \
	-fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
FUZZERS = $(patsubst test/fuzz/%.c,build/%,$(sort $(wildcard test/fuzz/fuzz_*.c)))
fuzz_sources = $(shell sed -n 's/^ \* fuzz: //p' $(1))

$(FUZZERS): build/%: test/fuzz/%.c $(SHARED_SOURCES) $(HOST_SOURCES) $(TEST_HEADERS)
	@mkdir -p build
	$(FUZZ_CC) $(FUZZ_CFLAGS) -o $@ $< $(call fuzz_sources,$<) $(SHARED_SOURCES) $(TEST_LIBS)

# Seeds are in test/fuzz/<target>/, words in <target>.dict; what is found goes to build/.
.PHONY: fuzz
fuzz: $(FUZZERS)
	@test -n '$(FUZZERS)' || { echo 'no fuzz target found' >&2; exit 1; }
	set -e; for fuzzer in $(FUZZERS); do \
		name=$${fuzzer#build/}; mkdir -p build/corpus/$$name; \
		seeds=; if test -d test/fuzz/$$name; then seeds=test/fuzz/$$name; fi; \
		dict=; if test -f test/fuzz/$$name.dict; then dict=-dict=test/fuzz/$$name.dict; fi; \
		echo "== $$name: $(FUZZ_SECONDS) s"; \
		$$fuzzer -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
			-verbosity=0 -artifact_prefix=build/$$name- $$dict \
			build/corpus/$$name $$seeds; \
	done

# Seals secrets as a client does, for the tests.
build/seal: test/lib/seal.c
	@mkdir -p build
	$(CC) -std=gnu11 -O2 $(TEST_WARNINGS) -o $@ $< -lsodium

# The yardsticks of test/bench: optimized, and without the sanitizers.
build/ssh_baseline: test/bench/ssh_baseline.c
	@mkdir -p build
	$(CC) -std=gnu11 -O2 $(TEST_WARNINGS) -o $@ $< -lssh

build/plugin_copier: test/bench/plugin_copier.c
	@mkdir -p build
	$(CC) -std=gnu11 -g -O2 -D_GNU_SOURCE $(TEST_WARNINGS) -o $@ $<

build/sandbox_baseline: test/bench/sandbox_baseline.c $(HOST_OBJS) build/sandbox_init.o
	$(CC) -std=gnu11 -O2 -D_GNU_SOURCE -Isrc -Isrc/host $(TEST_WARNINGS) -o $@ $(filter-out $(HOST_BUILD)/host/main.o,$^) $(LDFLAGS) $(HOST_LIBS)

# ---------------------------------------------------------------------------------------------
# Checks that are no tests
# ---------------------------------------------------------------------------------------------

C_FILES = $(wildcard src/*/*.[ch] src/*/*/*.[ch] test/*/*.[ch])
CLANG_FORMAT ?= clang-format
CPPCHECK ?= cppcheck
WARNING_COMPILERS ?= gcc clang

.PHONY: check-format check-sql check-layers check-documents check-warnings check-cppcheck
check-format:
	$(CLANG_FORMAT) --dry-run -Werror $(C_FILES)

check-sql:
	test/lib/check_sql sql/envrt.sql $(wildcard sql/envrt--*--*.sql)

comma_list = $(subst $(eval ) ,$(comma),$(strip $(1)))

check-layers: $(OBJS) $(HOST_OBJS)
	tools/check-layers --cc '$(CC)' --flags 'ext=-Isrc -Isrc/ext -isystem $(shell $(PG_CONFIG) --includedir-server)' \
		--flags 'host=-Isrc -Isrc/host' --flags shared=-Isrc --flags files=-Isrc \
		ext=$(call comma_list,$(OBJS)) host=$(call comma_list,$(HOST_OBJS))

check-documents:
	tools/check-documents --make '$(MAKE) PG_CONFIG=$(PG_CONFIG)'

# Every file by every compiler, each a target of its own for make -j.  The server's headers are
# not ours to keep clean; its function interface has parameters that not every function needs,
# and its structs are filled in from the front.
CHECKED_FILES = $(filter %.c,$(C_FILES))
warnings_of = $(if $(filter src/ext/%,$(1)),-Isrc/ext -isystem $(shell $(PG_CONFIG) --includedir-server) -Wno-unused-parameter -Wno-missing-field-initializers,-Isrc/host)

define check_warnings_rule
.PHONY: warnings-$(1)-$(2)
warnings-$(1)-$(2):
	$(1) -std=gnu11 -O2 -D_GNU_SOURCE -Wall -Wextra -Werror -Isrc -Itest/common \
		$$(call warnings_of,$(2)) -c -o /dev/null $(2)
check-warnings: warnings-$(1)-$(2)
endef
$(foreach compiler,$(WARNING_COMPILERS),$(foreach file,$(CHECKED_FILES),$(eval $(call check_warnings_rule,$(compiler),$(file)))))

cppcheck = $(CPPCHECK) --quiet --error-exitcode=1 --inline-suppr --std=c11 -j2 \
	--enable=warning,performance,portability --suppress=missingInclude --suppress=missingIncludeSystem \
	--library=test/lib/postgres.cfg -Isrc

check-cppcheck:
	$(cppcheck) -Isrc/ext $(filter src/ext/%,$(CHECKED_FILES))
	$(cppcheck) -Isrc/host $(filter-out src/ext/%,$(CHECKED_FILES))

# ---------------------------------------------------------------------------------------------
# The commands, for whoever has make
# ---------------------------------------------------------------------------------------------

.PHONY: test demo psql bench check-chroot check-valgrind check-versions check-upgrade
test:
	test/all
demo:
	test/demo
psql:
	test/psql
bench:
	test/bench/run
check-chroot:
	test/chroot
check-valgrind:
	test/valgrind
check-versions:
	test/versions

check-upgrade:
	test/versions --upgrade trixie:17
