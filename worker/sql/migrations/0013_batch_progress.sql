-- How far a batch that is being sent has come, for a successor on another machine, which does not have its journal.

-- So many of recipient_ids, from the first one, may have been written to when the batch was claimed. NULL: all of them.
ALTER TABLE worker.campaign_batch ADD may_leave integer;

-- One row each time that more of a batch's messages may leave, committed before they do.
CREATE TABLE worker.batch_progress (
    batch_id  uuid NOT NULL,
    may_leave integer NOT NULL,           -- so many of recipient_ids, from the first one, may have been written to
    outcomes  text NOT NULL,              -- of messages that had one by then and not before: lines of the journal
    PRIMARY KEY (batch_id, may_leave)
);
