-- worker.address: the one spelling of an address, by which the same one is found twice.
--
-- For every e-mail address that worker/content/addresses.py accepts it is parse_address(email).lower(); for phone numbers
-- that worker/content/phones.py accepts it is the number that is sent to. Two spellings that are one here are one there:
-- both are accepted, and lead to the same place, or both are refused. (But a domain that IDNA 2008 forbids may exist, and
-- is accepted in its ASCII form only: fail_doubles keeps the plainest spelling.)
-- tests/postgres/test_address_agreement.py gives both sides the same inputs.
--
-- It is computed in SQL, not looked up in a table that Python fills: claims, settlements and the targets of a campaign
-- ask for addresses that Python has not seen. The tables of letters below are needed because PostgreSQL has no Punycode,
-- and because its lower() depends on the locale of the database. Domains in other scripts than Latin need a UTF-8
-- database to have all their spellings recognised; elsewhere only composed letters, as keyboards write them, and their
-- case are recognised.

-- The same ranges as worker/content/invisible_characters.py.
CREATE FUNCTION worker.is_invisible(code integer) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT code BETWEEN 0 AND 32 OR code BETWEEN 127 AND 160 OR code = 173 OR code = 847 OR code = 1564 OR
            code BETWEEN 4447 AND 4448 OR code = 5760 OR code BETWEEN 6068 AND 6069 OR
            code BETWEEN 6155 AND 6159 OR code BETWEEN 8192 AND 8207 OR code BETWEEN 8232 AND 8239 OR
            code BETWEEN 8287 AND 8303 OR code = 10240 OR code = 12288 OR code = 12644 OR
            code BETWEEN 65024 AND 65039 OR code = 65279 OR code = 65440 OR code BETWEEN 65529 AND 65531 OR
            code BETWEEN 917505 AND 917631 OR code BETWEEN 917760 AND 917999
$$;

-- The Unicode code points of a text. A database without an encoding holds UTF-8 as bytes; broken ones are left out.
CREATE FUNCTION worker.code_points(value text) RETURNS integer[]
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    octets bytea := CASE getdatabaseencoding() WHEN 'SQL_ASCII' THEN decode(replace(value, E'\\', E'\\\\'), 'escape')
                                               ELSE convert_to(value, 'UTF8') END;
    octet integer;
    missing integer := 0;
    code integer := 0;
    found integer[] := '{}';
BEGIN
    FOR i IN 0 .. octet_length(octets) - 1 LOOP
        octet := get_byte(octets, i);
        IF octet < 128 THEN
            found := found || octet;
            missing := 0;
        ELSIF octet >= 192 THEN
            missing := CASE WHEN octet >= 240 THEN 3 WHEN octet >= 224 THEN 2 ELSE 1 END;
            code := octet & (63 >> missing);
        ELSIF missing > 0 THEN
            code := (code << 6) | (octet & 63);
            missing := missing - 1;
            IF missing = 0 THEN
                found := found || code;
            END IF;
        END IF;
    END LOOP;
    RETURN found;
END $$;

-- A label of a domain in Punycode (RFC 3492 6.3), without "xn--"; NULL when it is longer than a label can be.
CREATE FUNCTION worker.punycode(label integer[]) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    written text := '';
    n integer := 128;
    delta integer := 0;
    bias integer := 72;
    handled integer;
    basic integer;
    next integer;
    code integer;
    q integer;
    k integer;
    t integer;
BEGIN
    IF cardinality(label) > 63 THEN
        RETURN NULL;
    END IF;
    FOREACH code IN ARRAY label LOOP
        IF code < 128 THEN
            written := written || chr(code);
        END IF;
    END LOOP;
    basic := length(written);
    handled := basic;
    IF basic > 0 THEN
        written := written || '-';
    END IF;
    WHILE handled < cardinality(label) LOOP
        SELECT min(c) INTO next FROM unnest(label) AS c WHERE c >= n;
        delta := delta + (next - n) * (handled + 1);
        n := next;
        FOREACH code IN ARRAY label LOOP
            IF code < n THEN
                delta := delta + 1;
            ELSIF code = n THEN
                q := delta;
                k := 36;
                LOOP
                    t := greatest(1, least(26, k - bias));
                    EXIT WHEN q < t;
                    written := written || substr('abcdefghijklmnopqrstuvwxyz0123456789', t + (q - t) % (36 - t) + 1, 1);
                    q := (q - t) / (36 - t);
                    k := k + 36;
                END LOOP;
                written := written || substr('abcdefghijklmnopqrstuvwxyz0123456789', q + 1, 1);
                delta := CASE WHEN handled = basic THEN delta / 700 ELSE delta / 2 END;
                delta := delta + delta / (handled + 1);
                k := 0;
                WHILE delta > 455 LOOP
                    delta := delta / 35;
                    k := k + 36;
                END LOOP;
                bias := k + 36 * delta / (delta + 38);
                delta := 0;
                handled := handled + 1;
                IF length(written) > 59 THEN
                    RETURN NULL;
                END IF;
            END IF;
        END LOOP;
        delta := delta + 1;
        n := n + 1;
    END LOOP;
    RETURN written;
END $$;

-- The characters of a domain as UTS 46 maps them (non-transitional: sharp s and the joiners stay), in NFC. Letters that
-- have a lower case are in runs: each steps-th character from firsts to lasts, with deltas added; a run that adds 0 is
-- of characters that are not allowed, which stay so. All others are mapped by their compatibility decomposition. The
-- runs come from the table of UTS 46 in Unicode 18, as the idna library has it.
CREATE FUNCTION worker.mapped_domain(domain integer[]) RETURNS integer[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    firsts CONSTANT integer[] := '{
        65, 192, 216, 256, 308, 313, 321, 330, 376, 377, 385, 386, 390, 391, 393, 395, 398, 399, 400, 401, 403, 404,
        406, 407, 408, 412, 413, 415, 416, 422, 423, 425, 428, 430, 431, 433, 435, 439, 440, 444, 461, 478, 500, 502,
        503, 504, 544, 546, 570, 571, 573, 574, 577, 579, 580, 581, 582, 837, 880, 886, 895, 902, 904, 908, 910, 913,
        931, 975, 984, 1010, 1012, 1015, 1018, 1021, 1024, 1040, 1120, 1162, 1216, 1217, 1232, 1329, 1368, 1419, 1420,
        4256, 4295, 4301, 5112, 7296, 7297, 7298, 7299, 7301, 7302, 7303, 7304, 7305, 7312, 7357, 7680, 7838, 7840,
        7944, 7960, 7976, 7992, 8008, 8025, 8040, 8120, 8122, 8136, 8152, 8154, 8168, 8170, 8172, 8184, 8186, 8228,
        8349, 8350, 8486, 8490, 8491, 8498, 8579, 9352, 11264, 11360, 11362, 11363, 11364, 11367, 11373, 11374, 11375,
        11376, 11378, 11381, 11390, 11392, 11499, 11506, 12290, 13250, 13255, 13272, 42560, 42624, 42786, 42802,
        42873, 42877, 42878, 42891, 42893, 42896, 42902, 42922, 42923, 42924, 42925, 42926, 42928, 42929, 42930,
        42931, 42932, 42948, 42949, 42950, 42951, 42955, 42956, 42972, 42973, 42978, 42993, 42997, 43884, 43888,
        65042, 65049, 65072, 65106, 66560, 66736, 66928, 66940, 66956, 66964, 67515, 67516, 67518, 67519, 68736,
        68944, 71840, 93760, 93856, 117974, 118000, 120531, 120589, 120647, 120705, 120763, 122688, 122696, 122701,
        122705, 122728, 122738, 122829, 122832, 122833, 122834, 122835, 122836, 122837, 122838, 122839, 122840,
        122841, 122842, 122843, 122844, 122845, 122846, 122848, 122849, 122850, 122851, 122852, 122853, 122854,
        122855, 122856, 122857, 122858, 122859, 122860, 122861, 122863, 122864, 122867, 122869, 122870, 122871,
        122872, 122873, 122874, 122875, 122876, 122877, 122878, 122879, 122928, 122937, 122940, 122951, 122952,
        122954, 122955, 122956, 122957, 122958, 122959, 122960, 122961, 122970, 122972, 122974, 122975, 122981,
        122983, 122984, 122985, 122986, 122987, 122988, 122989, 125184, 127232}';
    lasts CONSTANT integer[] := '{
        90, 214, 222, 302, 310, 317, 327, 374, 376, 381, 385, 388, 390, 391, 394, 395, 398, 399, 400, 401, 403, 404,
        406, 407, 408, 412, 413, 415, 420, 422, 423, 425, 428, 430, 431, 434, 437, 439, 440, 444, 475, 494, 500, 502,
        503, 542, 544, 562, 570, 571, 573, 574, 577, 579, 580, 581, 590, 837, 882, 886, 895, 902, 906, 908, 911, 929,
        939, 975, 1006, 1010, 1012, 1015, 1018, 1023, 1039, 1071, 1152, 1214, 1216, 1229, 1326, 1366, 1368, 1419,
        1420, 4293, 4295, 4301, 5117, 7296, 7297, 7298, 7300, 7301, 7302, 7303, 7304, 7305, 7354, 7359, 7828, 7838,
        7934, 7951, 7965, 7983, 7999, 8013, 8031, 8047, 8121, 8122, 8138, 8153, 8154, 8169, 8170, 8172, 8184, 8186,
        8230, 8349, 8351, 8486, 8490, 8491, 8498, 8579, 9371, 11311, 11360, 11362, 11363, 11364, 11371, 11373, 11374,
        11375, 11376, 11378, 11381, 11391, 11490, 11501, 11506, 12290, 13250, 13255, 13272, 42604, 42650, 42798,
        42862, 42875, 42877, 42886, 42891, 42893, 42898, 42920, 42922, 42923, 42924, 42925, 42926, 42928, 42929,
        42930, 42931, 42946, 42948, 42949, 42950, 42953, 42955, 42970, 42972, 42973, 42978, 42993, 42997, 43885,
        43967, 65042, 65049, 65072, 65106, 66599, 66771, 66938, 66954, 66962, 66965, 67515, 67517, 67518, 67519,
        68786, 68965, 71871, 93791, 93880, 117999, 118009, 120531, 120589, 120647, 120705, 120763, 122688, 122698,
        122701, 122705, 122734, 122750, 122831, 122832, 122833, 122834, 122835, 122836, 122837, 122838, 122839,
        122840, 122841, 122842, 122843, 122844, 122845, 122847, 122848, 122849, 122850, 122851, 122852, 122853,
        122854, 122855, 122856, 122857, 122858, 122859, 122860, 122862, 122863, 122866, 122868, 122869, 122870,
        122871, 122872, 122873, 122874, 122875, 122876, 122877, 122878, 122879, 122936, 122939, 122950, 122951,
        122953, 122954, 122955, 122956, 122957, 122958, 122959, 122960, 122969, 122971, 122973, 122974, 122980,
        122982, 122983, 122984, 122985, 122986, 122987, 122988, 122989, 125217, 127232}';
    steps CONSTANT integer[] := '{
        1, 1, 1, 2, 2, 2, 2, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 2,
        1, 1, 1, 2, 2, 1, 1, 1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1,
        1, 1, 2, 2, 1, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1,
        1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 2, 2, 1, 1, 1, 1,
        1, 2, 2, 2, 2, 2, 1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1,
        1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 1, 1, 1,
        1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
        1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}';
    deltas CONSTANT integer[] := '{
        32, 32, 32, 1, 1, 1, 1, 1, -121, 1, 210, 1, 206, 1, 205, 1, 79, 202, 203, 1, 205, 207, 211, 209, 1, 211, 213,
        214, 1, 218, 1, 218, 1, 218, 1, 217, 1, 219, 1, 1, 1, 1, 1, -97, -56, 1, -130, 1, 10795, 1, -163, 10792, 1,
        -195, 69, 71, 1, 116, 1, 1, 116, 38, 37, 64, 63, 32, 32, 8, 1, -47, -60, 1, 1, -130, 80, 32, 1, 1, 15, 1, 1,
        48, 15, -32, -23, 7264, 7264, 7264, -8, -6222, -6221, -6212, -6210, -6211, -6204, -6180, 35267, 1, -3008,
        -3008, 1, -7615, 1, -8, -8, -8, -8, -8, -8, -8, -8, -74, -86, -8, -100, -8, -112, -7, -128, -126, 0, -8230,
        -8229, -7517, -8383, -8262, 28, 1, 0, 48, 1, -10743, -3814, -10727, 1, -10780, -10749, -10783, -10782, 1, 1,
        -10815, 1, 1, 1, -12244, 0, 0, 0, 1, 1, 1, 1, 1, -35332, 1, 1, -42280, 1, 1, -42308, -42319, -42315, -42305,
        -42308, -42258, -42282, -42261, 928, 1, -48, -42307, -35384, 1, -42343, 1, -42561, -42342, -42342, -42878, 1,
        -33, -38864, 0, 0, 0, 0, 40, 40, 39, 39, 39, 39, -66868, -66854, -66848, 55116, 64, 32, 32, 32, 27, -117877,
        -117952, -119568, -119626, -119684, -119742, -119800, 1, 1, 1, 1, 1, 1, -118, -122221, -115385, -122450,
        -122562, -122351, -122515, -122428, -135, -154, -122256, -115291, -156, -122430, -122209, -122278, -181, -200,
        -122204, -115275, -184, -201, -122195, -115277, -115427, -115433, -115427, -122220, -122215, -122175, -122318,
        -122300, -121899, -115316, -79969, -115312, -115310, -115307, -122482, -122466, -122455, -122205, -122449,
        -246, -121856, -121855, -121854, -121852, -121851, -80321, -121714, -121846, -121845, -121701, -121760,
        -121729, -121889, -121888, -121886, -121885, -121884, -121883, -121814, -121874, -121876, -121867, -121792,
        -80411, -121788, 34, 0}';
    utf8 CONSTANT boolean := getdatabaseencoding() = 'UTF8';
    mapped integer[] := '{}';
    parts integer[];
    part integer;
    code integer;
    run integer;
BEGIN
    FOREACH code IN ARRAY domain LOOP
        CONTINUE WHEN code = ANY ('{173,847,4447,4448,6068,6069,8203,12644,65279,65440}'::integer[])
            OR code BETWEEN 6155 AND 6159 OR code BETWEEN 8288 AND 8292 OR code BETWEEN 8298 AND 8303
            OR code BETWEEN 65024 AND 65039 OR code BETWEEN 113824 AND 113827 OR code BETWEEN 119155 AND 119162
            OR code BETWEEN 917760 AND 917999;
        run := width_bucket(code, firsts);
        IF run > 0 AND code <= lasts[run] AND (code - firsts[run]) % steps[run] = 0 THEN
            mapped := mapped || code + deltas[run];
        ELSIF code < 128 OR NOT utf8 THEN
            mapped := mapped || code;
        ELSE
            CASE code
                WHEN 110883 THEN parts := '{12371,12392}';
                WHEN 110884 THEN parts := '{12488,12461}';
                WHEN 110885 THEN parts := '{12488,12486}';
                WHEN 110886 THEN parts := '{12520,12522}';
                WHEN 120486, 122773 THEN parts := '{115,115}';
                ELSE parts := worker.code_points(normalize(chr(code), NFKD));
            END CASE;
            FOREACH part IN ARRAY parts LOOP
                run := width_bucket(part, firsts);
                IF run > 0 AND part <= lasts[run] AND (part - firsts[run]) % steps[run] = 0 THEN
                    part := part + deltas[run];
                END IF;
                mapped := mapped || part;
            END LOOP;
        END IF;
    END LOOP;
    IF NOT utf8 OR mapped = '{}' THEN
        RETURN mapped;
    END IF;
    RETURN worker.code_points(
        (SELECT normalize(string_agg(chr(c), '' ORDER BY n), NFC) FROM unnest(mapped) WITH ORDINALITY AS m (c, n)));
END $$;

-- A domain as it stands in an address on the wire: its labels in ASCII.
CREATE FUNCTION worker.ascii_domain(domain integer[]) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    written text := '';
    label integer[] := '{}';
    code integer;
BEGIN
    FOREACH code IN ARRAY worker.mapped_domain(domain) || 46 LOOP
        IF code <> 46 THEN
            label := label || code;
            CONTINUE;
        END IF;
        IF 128 > ALL (label) THEN
            FOREACH code IN ARRAY label LOOP
                written := written || chr(code);
            END LOOP;
            written := written || '.';
        ELSE
            written := written || 'xn--' || coalesce(worker.punycode(label), array_to_string(label, '-')) || '.';
        END IF;
        label := '{}';
    END LOOP;
    RETURN left(written, -1);
END $$;

-- An e-mail address that is not plain ASCII, or has something around it.
CREATE FUNCTION worker.email_address(email text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    points integer[];
    first integer := 1;
    last integer;
    at_sign integer;
    local_part text := '';
BEGIN
    IF length(email) > 1000 THEN  -- no address, whatever is trimmed
        RETURN email;
    END IF;
    points := worker.code_points(email);
    last := cardinality(points);
    WHILE first <= last AND worker.is_invisible(points[first]) LOOP
        first := first + 1;
    END LOOP;
    WHILE first <= last AND worker.is_invisible(points[last]) LOOP
        last := last - 1;
    END LOOP;
    IF first > last THEN
        RETURN NULL;
    END IF;
    points := points[first:last];
    at_sign := coalesce((array_positions(points, 64))[cardinality(array_positions(points, 64))], 0);
    IF at_sign = 0 OR 128 <= ANY (points[:at_sign]) OR cardinality(points) > 320 THEN
        RETURN lower(email COLLATE "C");  -- no address
    END IF;
    FOR i IN 1 .. at_sign LOOP
        local_part := local_part || chr(points[i]);
    END LOOP;
    RETURN lower(local_part COLLATE "C") || lower(worker.ascii_domain(points[at_sign + 1:]) COLLATE "C");
END $$;

-- A number or a country code in ASCII, without invisible characters at its ends; 'x' stands for what is in neither.
CREATE FUNCTION worker.phone_text(written text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    plain text := written;
    code integer;
BEGIN
    IF written ~ '[^ -~]' THEN
        plain := '';
        FOREACH code IN ARRAY worker.code_points(written) LOOP
            plain := plain || CASE
                WHEN worker.is_invisible(code) THEN ' '
                WHEN code < 128 THEN chr(code)
                WHEN code BETWEEN 8208 AND 8213 OR code IN (8722, 65293) THEN '-'
                WHEN code = 65291 THEN '+'
                ELSE coalesce((
                    SELECT (code - zero)::text FROM unnest('{
                        1632,1776,1984,2406,2534,2662,2790,2918,3046,3174,3302,3430,3558,3664,3792,3872,4160,
                        4240,6112,6160,6470,6608,6784,6800,6992,7088,7232,7248,42528,43216,43264,43472,43504,
                        43600,44016,65296}'::integer[]) AS zero
                    WHERE code BETWEEN zero AND zero + 9), 'x')
            END;
        END LOOP;
    END IF;
    RETURN btrim(plain, ' ');
END $$;

-- A phone number's digits as they were written, with a plus sign before them when they name their country. NULL: no
-- phone number. A float of a spreadsheet is the whole number that it was.
CREATE FUNCTION worker.phone_digits(phone text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    written text;
    fraction text;
    exponent integer;
BEGIN
    IF length(phone) > 1000 THEN
        RETURN NULL;
    END IF;
    written := worker.phone_text(phone);
    IF written ~ '^(?:\+|00)?[0-9]{7,20}[.,][0-9]{1,2}$' THEN  -- 9876543210.0
        written := substring(written FROM '^([^.,]*)[.,]0+$');
    ELSIF written ~ '^\+?[0-9](?:[.,][0-9]{1,20})?[eE]\+?[0-9]{1,2}$' THEN  -- 9.876543210E9; fewer digits were rounded
        exponent := substring(written FROM '[0-9]+$')::integer;
        fraction := coalesce(substring(written FROM '[.,]([0-9]+)'), '');
        written := CASE WHEN length(fraction) >= exponent AND substr(fraction, exponent + 1) ~ '^0*$'
                        THEN substring(written FROM '[0-9]') || left(fraction, exponent) END;
    END IF;
    written := translate(written, ' ./()[]-', '');
    RETURN CASE
        WHEN written ~ '^\+[0-9]{4,20}$' THEN written
        WHEN written ~ '^00[0-9]{4,20}$' THEN '+' || substr(written, 3)
        WHEN written ~ '^[0-9]{4,20}$' THEN written
    END;
END $$;

-- Digits with their country code, as the country dials them from abroad: without the 0 (in some countries another
-- digit) that is dialled at home before them. Countries whose numbers begin with a 0, as Italy's do, keep theirs.
CREATE FUNCTION worker.without_trunk(digits text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN digits ~ '^(?:11[0-9]{10}|78[0-9]{10}|3606[0-9]{8,9}|3708[0-9]{8}|9938[0-9]{8})$'
            THEN regexp_replace(digits, '^(1|7|36|370|993)(?:1|8|06)', '\1')
        WHEN digits ~ '^521[0-9]{10}$' THEN '52' || substr(digits, 4)  -- Mexico's mobile numbers had a 1 until 2019
        ELSE regexp_replace(digits,
            '^(2[07]|21[1-38]|23[1-4]|24[39]|25[124-6]|26[0-5]|291|3[1-3]|35[3589]|37[03-57]|38[0-35-79]'
            '|4[013469]|42[13]|5[1358]|508|59[013-68]|6[0-46]|686|8[146]|85[056]|88[06]|9[0-58]|96[1-467]'
            '|97[0-267]|99[4-6])0([1-9])', '\1\2')
    END
$$;

-- Whether digits can only be a number with its country code: inside the country none has this length (from the metadata
-- of libphonenumber 9.0; where a country has numbers of many lengths, the longest are told).
CREATE FUNCTION worker.has_country_code(digits text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT digits ~ '^(?:(?:290)[0-9]{4,5}|(?:247|500|67[6-8]|682|82)[0-9]{5}|(?:685)[0-9]{5,6}|(?:688'
                    '|690)[0-9]{5,7}|(?:29[89]|40|672|68[17])[0-9]{6}|(?:597|98)[0-9]{6,7}|(?:220|23[89]|24[68]'
                    '|26[59]|29[17]|354|42[13]|53|501|592|67[346-9]|68[03]|69[12]|960)[0-9]{7}|(?:230|241|267|372'
                    '|507|599|67[05]|961|975)[0-9]{7,8}|(?:231|25[24]|359|595|967)[0-9]{7,9}|(?:216|22[236-8]'
                    '|23[256]|25[37]|26[68]|35[067]|37[01348]|38[269]|4[57]|50[2-69]|59[18]|65|68[69]|85[023]'
                    '|96[58]|97[347]|993)[0-9]{8}|(?:27|213|224|25[08]|264|3[26]|355|377|38[57]|46|51|593|66|855'
                    '|886|96[23]|97[01])[0-9]{8,9}|(?:243|35[38]|856|880|964|976)[0-9]{8,10}|(?:21[128]|22[01]'
                    '|23[37]|24[02459]|25[156]|26[0-35]|3[34]|35[14]|37[56]|380|4[018]|42[013]|56|508|59[046]|61'
                    '|9[2-4]|966|99[24-68])[0-9]{9}|(?:20|44|6[034]|8[124]|95)[0-9]{9,10}|(?:352)[0-9]{9,11}'
                    '|(?:[17]|22[59]|234|30|378|5[2378]|685|850|9[018]|977)[0-9]{10}|(?:5[45]|86)[0-9]{10,11}'
                    '|(?:38[13])[0-9]{10,12}|(?:31)[0-9]{11}|(?:39|62|972)[0-9]{11,12}|(?:43)[0-9]{12,13}'
                    '|(?:49)[0-9]{14,15})$'
$$;

-- The calling code that digits begin with (ITU-T E.164): 1, 7, or two or three digits.
CREATE FUNCTION worker.calling_code(digits text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT substring(digits FROM '^(?:1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]'
                                 '|(?:2[1-689]|3[578]|42|5[09]|6[7-9]|8[035789]|9[679])[0-9])')
$$;

-- A phone number that is not written plainly. Numbers without a country code are Indian, as in the CRM.
CREATE FUNCTION worker.phone_address(phone text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    digits text := worker.phone_digits(phone);
    code text;
    again text;
BEGIN
    IF digits IS NULL THEN
        -- no number: it fails with the reason when it is sent to, unless there is no digit in it at all
        RETURN CASE WHEN worker.phone_text(left(phone, 1000)) ~ '[0-9]' THEN phone END;
    ELSIF starts_with(digits, '+') THEN
        digits := substr(digits, 2);
    ELSE
        digits := regexp_replace(digits, '^0', '');
        IF digits !~ '^(?:910?[0-9]{10}|(?:521|549)[0-9]{10})$' THEN
            digits := '91' || digits;
        END IF;
    END IF;
    digits := worker.without_trunk(digits);
    code := worker.calling_code(digits);
    again := regexp_replace(substr(digits, length(code) + 1), '^0', '');
    IF starts_with(again, code) AND worker.has_country_code(again) THEN
        RETURN worker.without_trunk(again);  -- the country code was typed twice
    END IF;
    RETURN digits;
END $$;

CREATE OR REPLACE FUNCTION worker.address(channel text, email text, phone text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN channel = 'email' THEN
            CASE WHEN email ~ '^[!-~]+$' THEN lower(email COLLATE "C") ELSE worker.email_address(email) END
        WHEN phone ~ '^\+91[1-9][0-9]{9}$' THEN substr(phone, 2)
        WHEN phone ~ '^[1-9][0-9]{9}$' THEN '91' || phone
        ELSE worker.phone_address(phone)
    END
$$;

-- A number that the CRM normalised has its country code, with or without the plus sign.
CREATE OR REPLACE FUNCTION worker.international(normalized text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN normalized ~ '^[1-9][0-9]{10,14}$' THEN '+' || normalized ELSE nullif(normalized, '') END
$$;

-- A number that does not name its country, as it is dialled from everywhere. With a country code that cannot be read it
-- is no number any more, and fails with the reason when it is sent to: without one it would be a stranger's in India.
CREATE FUNCTION worker.with_country_code(number text, country_code text) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    digits text := worker.phone_digits(number);
    bare text := regexp_replace(digits, '^0', '');
    written text := translate(worker.phone_text(left(country_code, 1000)), ' ./()[]-', '');
    code text := substring(written FROM '^(?:\+|00)?([1-9][0-9]{0,6})$');
    country text := worker.calling_code(code);
BEGIN
    IF digits IS NULL OR starts_with(digits, '+') OR code = '91' OR coalesce(written, '') IN ('', '+') THEN
        RETURN number;
    ELSIF code IS NULL THEN
        RETURN CASE WHEN written ~ '[^0-9+]' THEN format('%s %s', country_code, number)
                    ELSE format('%s (country code %s)', number, country_code) END;
    ELSIF starts_with(bare, code) AND worker.has_country_code(bare) OR bare ~ '^(?:521|549)[0-9]{10}$' THEN
        RETURN '+' || bare;
    ELSIF code <> country AND starts_with(country || bare, code) AND worker.has_country_code(country || bare) THEN
        RETURN '+' || country || bare;  -- "+1-684": the number has the area code, too
    END IF;
    RETURN '+' || worker.without_trunk(code || digits);
END $$;

-- A lead's number with its "phoneCountryCode": as it is, when it names its country itself or is Indian, else with a plus
-- sign. NULL, when it is none at all.
CREATE FUNCTION worker.international(number text, country_code text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN number ~ '^\+[1-9][0-9]{6,14}$' OR (country_code = '+91' AND number ~ '^[1-9][0-9]{6,14}$') THEN number
        WHEN worker.phone_address(number) IS NULL THEN NULL
        ELSE worker.with_country_code(number, country_code)
    END
$$;

-- What is remembered by its address takes the new spelling.
WITH renamed AS (
    DELETE FROM worker.suppression
    WHERE worker.address(channel, address, '+' || address) <> address
      AND worker.address(channel, address, '+' || address) ~ '@|^[0-9]+$'
    RETURNING tenant_id, channel, worker.address(channel, address, '+' || address) AS address, reason, created_at
)
INSERT INTO worker.suppression (tenant_id, channel, address, reason, created_at)
SELECT tenant_id, channel, address, reason, created_at FROM renamed
ON CONFLICT DO NOTHING;
