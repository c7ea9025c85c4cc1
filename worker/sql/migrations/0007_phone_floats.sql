-- A phone number's digits as they were written, with a plus sign before them when they name their country. NULL: no
-- phone number. A float of a spreadsheet is the whole number that it was, also with its country code put before it
-- (+49 15123456789.0). As _read in worker/content/phones.py.
CREATE OR REPLACE FUNCTION worker.phone_digits(phone text) RETURNS text
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
    IF written ~ '^\+?[0-9](?:[.,][0-9]{1,20})?[eE]\+?[0-9]{1,2}$' THEN  -- 9.876543210E9; fewer digits were rounded
        exponent := substring(written FROM '[0-9]+$')::integer;
        fraction := coalesce(substring(written FROM '[.,]([0-9]+)'), '');
        written := CASE WHEN length(fraction) >= exponent AND substr(fraction, exponent + 1) ~ '^0*$'
                        THEN substring(written FROM '[0-9]') || left(fraction, exponent) END;
    END IF;
    written := translate(written, ' /()[]-', '');
    IF written ~ '^(?:\+|00)?[0-9]{7,20}[.,](?:[0-9]{1,2}|0{3,20})$' THEN  -- 9876543210.0
        written := substring(written FROM '^([^.,]*)[.,]0+$');
    END IF;
    written := replace(written, '.', '');
    RETURN CASE
        WHEN written ~ '^\+[0-9]{4,20}$' THEN written
        WHEN written ~ '^00[0-9]{4,20}$' THEN '+' || substr(written, 3)
        WHEN written ~ '^[0-9]{4,20}$' THEN written
    END;
END $$;
