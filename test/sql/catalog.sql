LOAD 'envrt';
-- Every object has a comment, and nothing is granted to PUBLIC.
WITH objects AS (
    SELECT classid, objid
    FROM pg_depend
    WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
      AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'envrt')
    UNION ALL
    SELECT 'pg_class'::regclass, indexrelid
    FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    WHERE relnamespace = 'envrt'::regnamespace
      AND indexrelid NOT IN (SELECT conindid FROM pg_constraint WHERE contype IN ('p', 'u'))
    UNION ALL
    SELECT 'pg_trigger'::regclass, pg_trigger.oid
    FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
    WHERE relnamespace = 'envrt'::regnamespace AND NOT tgisinternal
)
SELECT pg_describe_object(classid, objid, 0) AS without_comment
FROM objects
WHERE obj_description(objid, classid::regclass::name) IS NULL
ORDER BY 1;
SELECT obj_description('envrt'::regnamespace, 'pg_namespace') IS NOT NULL AS schema_comment;

SELECT p.oid::regprocedure
FROM pg_depend d JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'envrt')
  AND (p.proacl IS NULL OR EXISTS (SELECT FROM aclexplode(p.proacl) a WHERE a.grantee = 0));
SELECT c.oid::regclass
FROM pg_class c, aclexplode(c.relacl) a
WHERE c.relnamespace = 'envrt'::regnamespace AND a.grantee = 0;

-- Columns that hold a state have a CHECK.
SELECT c.conname, pg_get_constraintdef(c.oid)
FROM pg_constraint c
WHERE c.connamespace = 'envrt'::regnamespace AND c.contype = 'c'
ORDER BY 1;

-- Functions by name, arguments, result, volatility and parallel safety.
SELECT p.proname, pg_get_function_arguments(p.oid) AS arguments, pg_get_function_result(p.oid) AS result,
       p.provolatile, p.proparallel
FROM pg_depend d JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'envrt')
  AND p.pronamespace <> 'envrt'::regnamespace
ORDER BY 1;

-- Settings: nothing that reaches the outside is for a session to change.
SELECT name, unit, context, boot_val FROM pg_settings WHERE name LIKE 'envrt.%' ORDER BY name;
SET envrt.ssh_connect_timeout = '1s';

-- The shared tables' data goes with pg_dump.
SELECT count(*) FROM pg_extension, unnest(extconfig) WHERE extname = 'envrt';

-- What a setting can't mean is refused where it is written.
ALTER SYSTEM SET envrt.allowed_hosts = '127.0.0.1/33';
ALTER SYSTEM SET envrt.allowed_hosts = 'http://x';
ALTER SYSTEM SET envrt.allowed_hosts = '127.0.0.1:22';
ALTER SYSTEM SET envrt.runtime_api_candidates = 'http://a, ftp://b';
