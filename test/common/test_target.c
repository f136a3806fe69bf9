/*
 * test_target.c
 *		Origins of URLs and names of SSH logins.
 */
#include "shared/target.h"
#include "tap.h"

static const char *const origins[][2] = {
    {"http://host", "http://host"},
    {"HTTP://Host:80/x", "http://host"},
    {"https://host:443", "https://host"},
    {"https://host:80", "https://host:80"},
    {"http://host:443/", "http://host:443"},
    {"http://127.0.0.1:3102/api/health?x#y", "http://127.0.0.1:3102"},
    {"  http://host:3102/\n", "http://host:3102"},
    {"http://host:", "http://host"},
    {"http://host:00080", "http://host"},
    {"http://user:pass@host:1/x@y", "http://host:1"},
    {"http://a@b@host", "http://host"},
    {"http://host?x=/a@b", "http://host"},
    {"http://host\\@evil/", "http://host"},
    {"http://my_host-1.example.", "http://my_host-1.example."},
    {"http://[::1]:3102/", "http://[::1]:3102"},
    {"https://[FE80:0:0::0001]:443", "https://[fe80::1]"},
    {"http://[::ffff:1.2.3.4]", "http://[::ffff:1.2.3.4]"},
    {"", NULL},
    {"host", NULL},
    {"ftp://host", NULL},
    {"httpx://host", NULL},
    {"http:/host", NULL},
    {"http://", NULL},
    {"http:///path", NULL},
    {"http://:80", NULL},
    {"http://user@", NULL},
    {"http://ho st", NULL},
    {"http://host/a b", NULL},
    {"http://host\n/evil", NULL},
    {"http://host'", NULL},
    {"http://$(id)", NULL},
    {"http://h;id", NULL},
    {"http://-o", NULL},
    {"http://.", NULL},
    {"http://--", NULL},
    {"http://h%41", NULL},
    {"http://h\xc3\xb6st", NULL},
    {"http://host:0", NULL},
    {"http://host:65536", NULL},
    {"http://host:99999999999999999999", NULL},
    {"http://host:80a", NULL},
    {"http://host:80:80", NULL},
    {"http://[::1", NULL},
    {"http://[::1]x", NULL},
    {"http://[fe80::1%25eth0]", NULL},
    {"http://[]", NULL},
    {"http://::1", NULL},
    {"http://[1.2.3.4]", NULL},
};

int
main(void)
{
	char buffer[300];
	char name[400];
	char url[400] = "http://";

	for (size_t i = 0; i < sizeof(origins) / sizeof(origins[0]); i++)
	{
		bool is_origin = api_origin(origins[i][0], buffer, sizeof(buffer));

		snprintf(name, sizeof(name), "origin of %s", origins[i][0]);
		for (char *p = name; *p != '\0'; p++)
		{
			if (*p == '\n' || *p == '#')
				*p = '.';
		}
		is(is_origin ? buffer : NULL, origins[i][1], name);
	}
	ok(!api_origin("http://host", buffer, 11), "an origin that does not fit is none");
	ok(api_origin("http://host", buffer, 12), "an origin that fits is one");
	memset(url + 7, 'a', 254);
	ok(!api_origin(url, buffer, sizeof(buffer)), "a name that is too long for DNS is none");
	url[7 + 253] = '\0';
	ok(api_origin(url, buffer, sizeof(buffer)), "the longest name is one");

	ssh_target("user", "host", 22, buffer, sizeof(buffer));
	is(buffer, "user@host:22", "an SSH login");
	ssh_target("user", "::1", 2222, buffer, sizeof(buffer));
	is(buffer, "user@[::1]:2222", "an IPv6 host gets brackets");
	ssh_target("user", "[::1]", 2222, buffer, sizeof(buffer));
	is(buffer, "user@[::1]:2222", "but only once");
	ssh_target("user", "host", 22, buffer, 8);
	is(buffer, "user@ho", "a name that does not fit is cut");
	return done_testing();
}
