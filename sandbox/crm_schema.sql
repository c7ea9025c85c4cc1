-- The CRM's tables that the worker reads or writes, with every column, default, foreign key and index of the real
-- ones: tests/sandbox/crm_schema.tsv has the facts. The CRM's own migrations make these tables; the worker must run
-- against them unchanged.
-- Nothing gives an id or an "updatedAt"; times are UTC without a zone. A column that holds the id of another row but
-- has no REFERENCES ("CallQueue"."callScriptId", "CallSettings"."defaultCallScriptId") may name one that is not there.

CREATE TYPE "UserRole" AS ENUM ('ADMIN', 'MANAGER', 'AGENT', 'VIEWER');
CREATE TYPE "TenantStatus" AS ENUM ('ACTIVE', 'SUSPENDED', 'TRIAL', 'CANCELLED');
CREATE TYPE "SubscriptionPlan" AS ENUM ('FREE', 'STANDARD', 'PROFESSIONAL', 'ENTERPRISE');
CREATE TYPE "StageType" AS ENUM ('LEAD', 'DEAL', 'BOTH');

-- Stubs: the worker never reads these three, but tables below refer to them. The real ones have more columns.
CREATE TABLE "Department" (id text PRIMARY KEY);
CREATE TABLE "Team" (id text PRIMARY KEY);
CREATE TABLE "Deal" (id text PRIMARY KEY);

CREATE TABLE "Tenant" (
    id                  text PRIMARY KEY,
    name                text NOT NULL,
    slug                text NOT NULL,
    domain              text,
    status              "TenantStatus" NOT NULL DEFAULT 'TRIAL',
    plan                "SubscriptionPlan" NOT NULL DEFAULT 'FREE',
    "subscriptionStart" timestamp(3),
    "subscriptionEnd"   timestamp(3),
    "maxUsers"          integer NOT NULL DEFAULT 2,
    settings            jsonb,
    "contactEmail"      text NOT NULL,
    "contactPhone"      text,
    "createdAt"         timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"         timestamp(3) NOT NULL
);
CREATE UNIQUE INDEX "Tenant_slug_key" ON "Tenant" (slug);
CREATE UNIQUE INDEX "Tenant_domain_key" ON "Tenant" (domain);
CREATE INDEX "Tenant_slug_idx" ON "Tenant" (slug);
CREATE INDEX "Tenant_status_idx" ON "Tenant" (status);

CREATE TABLE "User" (
    id                          text PRIMARY KEY,
    email                       text NOT NULL,
    password                    text,
    name                        text NOT NULL,
    company                     text NOT NULL DEFAULT '',
    role                        "UserRole" NOT NULL DEFAULT 'AGENT',
    "isActive"                  boolean NOT NULL DEFAULT true,
    "createdAt"                 timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"                 timestamp(3) NOT NULL,
    "tenantId"                  text NOT NULL REFERENCES "Tenant" ON UPDATE CASCADE ON DELETE CASCADE,
    "googleId"                  text,
    "googleEmail"               text,
    "googleProfilePic"          text,
    "gmailAccessToken"          text,
    "gmailRefreshToken"         text,
    "gmailTokenExpiry"          timestamp(3),
    "gmailConnectedAt"          timestamp(3),
    "gmailScopes"               jsonb,
    "calendarAccessToken"       text,
    "calendarRefreshToken"      text,
    "calendarTokenExpiry"       timestamp(3),
    "calendarConnectedAt"       timestamp(3),
    "calendarScopes"            jsonb,
    "calendarWebhookChannelId"  text,
    "calendarWebhookResourceId" text,
    "calendarWebhookExpiration" timestamp(3),
    "passwordResetToken"        text,
    "passwordResetExpires"      timestamp(3),
    "departmentId"              text REFERENCES "Department" ON UPDATE CASCADE ON DELETE SET NULL,
    "teamId"                    text REFERENCES "Team" ON UPDATE CASCADE ON DELETE SET NULL
);
CREATE UNIQUE INDEX "User_googleId_key" ON "User" ("googleId");
CREATE INDEX "User_email_idx" ON "User" (email);
CREATE INDEX "User_googleId_idx" ON "User" ("googleId");
CREATE INDEX "User_role_idx" ON "User" (role);
CREATE INDEX "User_departmentId_idx" ON "User" ("departmentId");
CREATE INDEX "User_teamId_idx" ON "User" ("teamId");
CREATE INDEX "User_tenantId_idx" ON "User" ("tenantId");
CREATE UNIQUE INDEX "User_email_tenantId_key" ON "User" (email, "tenantId");

CREATE TABLE "PipelineStage" (
    id                text PRIMARY KEY,
    name              text NOT NULL,
    slug              text NOT NULL,
    color             text NOT NULL DEFAULT 'blue',
    "order"           integer NOT NULL,
    "isDefault"       boolean NOT NULL DEFAULT false,
    "isSystemDefault" boolean NOT NULL DEFAULT false,
    "isActive"        boolean NOT NULL DEFAULT true,
    description       text,
    "createdAt"       timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"       timestamp(3) NOT NULL,
    "stageType"       "StageType" NOT NULL DEFAULT 'BOTH',
    "isNewLeadStage"  boolean NOT NULL DEFAULT false,
    "isWonStage"      boolean NOT NULL DEFAULT false,
    "isLostStage"     boolean NOT NULL DEFAULT false,
    "tenantId"        text NOT NULL
);
CREATE INDEX "PipelineStage_tenantId_idx" ON "PipelineStage" ("tenantId");
CREATE INDEX "PipelineStage_tenantId_stageType_idx" ON "PipelineStage" ("tenantId", "stageType");
CREATE INDEX "PipelineStage_order_idx" ON "PipelineStage" ("order");
CREATE INDEX "PipelineStage_isActive_idx" ON "PipelineStage" ("isActive");
CREATE INDEX "PipelineStage_isSystemDefault_idx" ON "PipelineStage" ("isSystemDefault");
CREATE INDEX "PipelineStage_isWonStage_idx" ON "PipelineStage" ("isWonStage");
CREATE INDEX "PipelineStage_isLostStage_idx" ON "PipelineStage" ("isLostStage");
CREATE INDEX "PipelineStage_isNewLeadStage_idx" ON "PipelineStage" ("isNewLeadStage");
CREATE UNIQUE INDEX "PipelineStage_tenantId_slug_key" ON "PipelineStage" ("tenantId", slug);

CREATE TABLE "Lead" (
    id                    text PRIMARY KEY,
    name                  text NOT NULL,
    company               text NOT NULL,
    email                 text NOT NULL,
    phone                 text NOT NULL,
    "phoneCountryCode"    text NOT NULL DEFAULT '+91',
    "phoneNormalized"     text,
    whatsapp              text,
    "whatsappCountryCode" text,
    "whatsappNormalized"  text,
    source                text NOT NULL,
    status                text NOT NULL,
    priority              text NOT NULL,
    "estimatedValue"      double precision NOT NULL,
    "assignedTo"          text NOT NULL,
    "createdBy"           text,
    notes                 text NOT NULL DEFAULT '',
    tags                  text[],
    website               text,
    "linkedIn"            text,
    twitter               text,
    facebook              text,
    "createdAt"           timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"           timestamp(3) NOT NULL,
    "lastContactedAt"     timestamp(3),
    "nextFollowUpAt"      timestamp(3),
    "tenantId"            text NOT NULL,
    "userId"              text NOT NULL REFERENCES "User" ON UPDATE CASCADE ON DELETE CASCADE,
    "dealId"              text REFERENCES "Deal" ON UPDATE CASCADE ON DELETE SET NULL,
    "stageId"             text NOT NULL REFERENCES "PipelineStage" ON UPDATE CASCADE ON DELETE RESTRICT,
    "lastCalledAt"        timestamp(3),
    "callCount"           integer NOT NULL DEFAULT 0,
    "nextCallAt"          timestamp(3)
);
CREATE UNIQUE INDEX "Lead_dealId_key" ON "Lead" ("dealId");
CREATE INDEX "Lead_status_priority_idx" ON "Lead" (status, priority);
CREATE INDEX "Lead_assignedTo_idx" ON "Lead" ("assignedTo");
CREATE INDEX "Lead_userId_idx" ON "Lead" ("userId");
CREATE INDEX "Lead_dealId_idx" ON "Lead" ("dealId");
CREATE INDEX "Lead_createdBy_idx" ON "Lead" ("createdBy");
CREATE INDEX "Lead_tenantId_idx" ON "Lead" ("tenantId");
CREATE INDEX "Lead_stageId_idx" ON "Lead" ("stageId");
CREATE INDEX "Lead_phoneNormalized_idx" ON "Lead" ("phoneNormalized");
CREATE INDEX "Lead_whatsappNormalized_idx" ON "Lead" ("whatsappNormalized");

CREATE TABLE "Contact" (
    id                          text PRIMARY KEY,
    name                        text NOT NULL,
    company                     text NOT NULL,
    designation                 text NOT NULL,
    email                       text NOT NULL,
    phone                       text NOT NULL,
    "phoneCountryCode"          text NOT NULL DEFAULT '+91',
    "phoneNormalized"           text,
    "alternatePhone"            text,
    "alternatePhoneCountryCode" text,
    "alternatePhoneNormalized"  text,
    whatsapp                    text,
    "whatsappCountryCode"       text,
    "whatsappNormalized"        text,
    type                        text NOT NULL,
    industry                    text NOT NULL,
    "companySize"               text NOT NULL,
    "gstNumber"                 text,
    "panNumber"                 text,
    "addressStreet"             text NOT NULL DEFAULT '',
    "addressCity"               text NOT NULL DEFAULT '',
    "addressState"              text NOT NULL DEFAULT '',
    "addressPincode"            text NOT NULL DEFAULT '',
    "addressCountry"            text NOT NULL DEFAULT 'India',
    website                     text,
    "linkedIn"                  text,
    notes                       text NOT NULL DEFAULT '',
    tags                        text[],
    "assignedTo"                text NOT NULL,
    "createdBy"                 text,
    "lifetimeValue"             double precision NOT NULL DEFAULT 0,
    "createdAt"                 timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"                 timestamp(3) NOT NULL,
    "tenantId"                  text NOT NULL,
    "userId"                    text NOT NULL REFERENCES "User" ON UPDATE CASCADE ON DELETE CASCADE
);
CREATE INDEX "Contact_type_idx" ON "Contact" (type);
CREATE INDEX "Contact_assignedTo_idx" ON "Contact" ("assignedTo");
CREATE INDEX "Contact_userId_idx" ON "Contact" ("userId");
CREATE INDEX "Contact_createdBy_idx" ON "Contact" ("createdBy");
CREATE INDEX "Contact_tenantId_idx" ON "Contact" ("tenantId");
CREATE INDEX "Contact_phoneNormalized_idx" ON "Contact" ("phoneNormalized");
CREATE INDEX "Contact_whatsappNormalized_idx" ON "Contact" ("whatsappNormalized");

CREATE TABLE "Campaign" (
    id                         text PRIMARY KEY,
    name                       text NOT NULL,
    description                text,
    channel                    text NOT NULL,
    status                     text NOT NULL DEFAULT 'draft',
    subject                    text,
    "htmlContent"              text,
    "textContent"              text NOT NULL,
    "whatsappMessageType"      text,
    "whatsappMediaType"        text,
    "whatsappMediaUrl"         text,
    "whatsappCaption"          text,
    "whatsappTemplateName"     text,
    "whatsappTemplateLanguage" text,
    "whatsappTemplateParams"   jsonb,
    "scheduledAt"              timestamp(3),
    "completedAt"              timestamp(3),
    "targetType"               text NOT NULL,
    "targetFilters"            jsonb,
    "totalRecipients"          integer NOT NULL DEFAULT 0,
    "sentCount"                integer NOT NULL DEFAULT 0,
    "failedCount"              integer NOT NULL DEFAULT 0,
    "deliveredCount"           integer NOT NULL DEFAULT 0,
    "openedCount"              integer NOT NULL DEFAULT 0,
    "utmSource"                text,
    "utmMedium"                text,
    "utmCampaign"              text,
    "utmTerm"                  text,
    "utmContent"               text,
    "platformUtmConfig"        jsonb,
    "autoTagLinks"             boolean NOT NULL DEFAULT true,
    "trackClicks"              boolean NOT NULL DEFAULT true,
    "useShortLinks"            boolean NOT NULL DEFAULT false,
    "createdAt"                timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"                timestamp(3) NOT NULL,
    "tenantId"                 text NOT NULL,
    "userId"                   text NOT NULL REFERENCES "User" ON UPDATE CASCADE ON DELETE CASCADE
);
CREATE INDEX "Campaign_userId_idx" ON "Campaign" ("userId");
CREATE INDEX "Campaign_status_idx" ON "Campaign" (status);
CREATE INDEX "Campaign_scheduledAt_idx" ON "Campaign" ("scheduledAt");
CREATE INDEX "Campaign_channel_idx" ON "Campaign" (channel);
CREATE INDEX "Campaign_tenantId_idx" ON "Campaign" ("tenantId");

CREATE TABLE "CampaignRecipient" (
    id               text PRIMARY KEY,
    "tenantId"       text NOT NULL,
    "campaignId"     text NOT NULL REFERENCES "Campaign" ON UPDATE CASCADE ON DELETE CASCADE,
    "recipientType"  text NOT NULL,
    "recipientId"    text NOT NULL,
    "recipientName"  text NOT NULL,
    "recipientEmail" text,
    "recipientPhone" text,
    status           text NOT NULL DEFAULT 'pending',
    "sentAt"         timestamp(3),
    "deliveredAt"    timestamp(3),
    "openedAt"       timestamp(3),
    "failedAt"       timestamp(3),
    "errorMessage"   text,
    "messageId"      text,
    "clickedCount"   integer NOT NULL DEFAULT 0,
    "firstClickedAt" timestamp(3),
    "lastClickedAt"  timestamp(3),
    "createdAt"      timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"      timestamp(3) NOT NULL
);
CREATE INDEX "CampaignRecipient_campaignId_idx" ON "CampaignRecipient" ("campaignId");
CREATE INDEX "CampaignRecipient_status_idx" ON "CampaignRecipient" (status);
CREATE INDEX "CampaignRecipient_recipientType_recipientId_idx"
    ON "CampaignRecipient" ("recipientType", "recipientId");
CREATE INDEX "CampaignRecipient_tenantId_idx" ON "CampaignRecipient" ("tenantId");

CREATE TABLE "CampaignLog" (
    id           text PRIMARY KEY,
    "tenantId"   text NOT NULL,
    "campaignId" text NOT NULL REFERENCES "Campaign" ON UPDATE CASCADE ON DELETE CASCADE,
    action       text NOT NULL,
    message      text NOT NULL,
    metadata     jsonb,
    "createdAt"  timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX "CampaignLog_campaignId_idx" ON "CampaignLog" ("campaignId");
CREATE INDEX "CampaignLog_createdAt_idx" ON "CampaignLog" ("createdAt");
CREATE INDEX "CampaignLog_tenantId_idx" ON "CampaignLog" ("tenantId");

CREATE TABLE campaign_links (
    id              text PRIMARY KEY,
    "tenantId"      text NOT NULL,
    "campaignId"    text REFERENCES "Campaign" ON UPDATE CASCADE ON DELETE CASCADE,
    "originalUrl"   text NOT NULL,
    "taggedUrl"     text NOT NULL,
    "shortCode"     text,
    "shortUrl"      text,
    "utmSource"     text,
    "utmMedium"     text,
    "utmCampaign"   text,
    "utmTerm"       text,
    "utmContent"    text,
    "linkText"      text,
    "linkPosition"  text,
    platform        text,
    "totalClicks"   integer NOT NULL DEFAULT 0,
    "uniqueClicks"  integer NOT NULL DEFAULT 0,
    "lastClickedAt" timestamp(3),
    "createdAt"     timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"     timestamp(3) NOT NULL
);
CREATE UNIQUE INDEX "campaign_links_shortCode_key" ON campaign_links ("shortCode");
CREATE INDEX "campaign_links_tenantId_campaignId_idx" ON campaign_links ("tenantId", "campaignId");
CREATE INDEX "campaign_links_shortCode_idx" ON campaign_links ("shortCode");

CREATE TABLE "EmailLog" (
    id               text PRIMARY KEY,
    "to"             text[],
    cc               text[] DEFAULT ARRAY[]::text[],
    bcc              text[] DEFAULT ARRAY[]::text[],
    "from"           text NOT NULL,
    subject          text NOT NULL,
    body             text NOT NULL,
    "htmlBody"       text,
    status           text NOT NULL,
    "errorMessage"   text,
    "messageId"      text,
    "gmailMessageId" text,
    "gmailThreadId"  text,
    "entityType"     text,
    "entityId"       text,
    attachments      jsonb,
    "sentAt"         timestamp(3),
    "openedAt"       timestamp(3),
    "clickedAt"      timestamp(3),
    "replyCount"     integer NOT NULL DEFAULT 0,
    "lastReplyAt"    timestamp(3),
    "createdAt"      timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"      timestamp(3) NOT NULL,
    "tenantId"       text NOT NULL,
    "userId"         text NOT NULL REFERENCES "User" ON UPDATE CASCADE ON DELETE CASCADE,
    "parentEmailId"  text REFERENCES "EmailLog" ON UPDATE CASCADE ON DELETE SET NULL
);
CREATE INDEX "EmailLog_userId_idx" ON "EmailLog" ("userId");
CREATE INDEX "EmailLog_status_idx" ON "EmailLog" (status);
CREATE INDEX "EmailLog_entityType_entityId_idx" ON "EmailLog" ("entityType", "entityId");
CREATE INDEX "EmailLog_createdAt_idx" ON "EmailLog" ("createdAt");
CREATE INDEX "EmailLog_to_idx" ON "EmailLog" ("to");
CREATE INDEX "EmailLog_gmailThreadId_idx" ON "EmailLog" ("gmailThreadId");
CREATE INDEX "EmailLog_parentEmailId_idx" ON "EmailLog" ("parentEmailId");
CREATE INDEX "EmailLog_tenantId_idx" ON "EmailLog" ("tenantId");

CREATE TABLE "EmailTemplate" (
    id               text PRIMARY KEY,
    name             text NOT NULL,
    description      text,
    type             text NOT NULL,
    subject          text NOT NULL,
    "htmlBody"       text NOT NULL,
    variables        jsonb,
    "isActive"       boolean NOT NULL DEFAULT true,
    "isDefault"      boolean NOT NULL DEFAULT false,
    version          integer NOT NULL DEFAULT 1,
    "usageCount"     integer NOT NULL DEFAULT 0,
    "lastUsedAt"     timestamp(3),
    "lastTestedAt"   timestamp(3),
    "testEmailCount" integer NOT NULL DEFAULT 0,
    "createdAt"      timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"      timestamp(3) NOT NULL,
    "tenantId"       text NOT NULL,
    "createdBy"      text NOT NULL REFERENCES "User" ON UPDATE CASCADE ON DELETE CASCADE,
    "lastEditedBy"   text REFERENCES "User" ON UPDATE CASCADE ON DELETE SET NULL
);
CREATE INDEX "EmailTemplate_tenantId_idx" ON "EmailTemplate" ("tenantId");
CREATE INDEX "EmailTemplate_type_idx" ON "EmailTemplate" (type);
CREATE INDEX "EmailTemplate_isActive_idx" ON "EmailTemplate" ("isActive");
CREATE INDEX "EmailTemplate_isDefault_idx" ON "EmailTemplate" ("isDefault");
CREATE INDEX "EmailTemplate_createdBy_idx" ON "EmailTemplate" ("createdBy");
CREATE UNIQUE INDEX "EmailTemplate_tenantId_type_isDefault_key" ON "EmailTemplate" ("tenantId", type, "isDefault");

CREATE TABLE "AutomationRule" (
    id                  text PRIMARY KEY,
    name                text NOT NULL,
    type                text NOT NULL,
    "isEnabled"         boolean NOT NULL DEFAULT true,
    "triggerEvent"      text NOT NULL,
    "triggerConditions" jsonb,
    "actionType"        text NOT NULL,
    "actionConfig"      jsonb NOT NULL,
    "emailSubject"      text,
    "emailTemplate"     text,
    "whatsappMessage"   text,
    "whatsappTemplate"  text,
    "fromStage"         text,
    "toStage"           text,
    "entityType"        text NOT NULL DEFAULT 'lead',
    "createdAt"         timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"         timestamp(3) NOT NULL,
    "tenantId"          text NOT NULL,
    "userId"            text NOT NULL REFERENCES "User" ON UPDATE CASCADE ON DELETE CASCADE
);
CREATE INDEX "AutomationRule_userId_idx" ON "AutomationRule" ("userId");
CREATE INDEX "AutomationRule_type_idx" ON "AutomationRule" (type);
CREATE INDEX "AutomationRule_isEnabled_idx" ON "AutomationRule" ("isEnabled");
CREATE INDEX "AutomationRule_triggerEvent_idx" ON "AutomationRule" ("triggerEvent");
CREATE INDEX "AutomationRule_tenantId_idx" ON "AutomationRule" ("tenantId");

CREATE TABLE "CallSettings" (
    id                             text PRIMARY KEY,
    "tenantId"                     text NOT NULL REFERENCES "Tenant" ON UPDATE CASCADE ON DELETE CASCADE,
    "twilioAccountSid"             text,
    "twilioAuthToken"              text,
    "twilioPhoneNumber"            text,
    "openaiApiKey"                 text,
    "openaiModel"                  text NOT NULL DEFAULT 'gpt-4o-realtime-preview-2024-12-17',
    "maxConcurrentCalls"           integer NOT NULL DEFAULT 5,
    "callTimeout"                  integer NOT NULL DEFAULT 300,
    "enableRecording"              boolean NOT NULL DEFAULT true,
    "enableTranscription"          boolean NOT NULL DEFAULT true,
    "autoCallOnLeadCreate"         boolean NOT NULL DEFAULT false,
    "autoCallOnStageChange"        boolean NOT NULL DEFAULT false,
    "autoCallDelaySeconds"         integer NOT NULL DEFAULT 60,
    "autoCallLeadCreateScriptId"   text,
    "autoCallStageChangeScriptId"  text,
    "autoCallStageChangeFromStage" text,
    "autoCallStageChangeToStage"   text,
    "enableBusinessHours"          boolean NOT NULL DEFAULT true,
    "businessHoursStart"           text,
    "businessHoursEnd"             text,
    "businessDays"                 jsonb,
    timezone                       text NOT NULL DEFAULT 'Asia/Kolkata',
    "enableDemoScheduling"         boolean NOT NULL DEFAULT false,
    "demoSchedulingAutoBook"       boolean NOT NULL DEFAULT true,
    "demoSchedulingMinConfidence"  integer NOT NULL DEFAULT 70,
    "demoSchedulingCalendarId"     text,
    "demoSchedulingNotifyUser"     boolean NOT NULL DEFAULT true,
    "demoSchedulingNotifyLead"     boolean NOT NULL DEFAULT true,
    "defaultCallScriptId"          text,
    "createdAt"                    timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"                    timestamp(3) NOT NULL
);
CREATE UNIQUE INDEX "CallSettings_tenantId_key" ON "CallSettings" ("tenantId");
CREATE INDEX "CallSettings_tenantId_idx" ON "CallSettings" ("tenantId");

CREATE TABLE "CallScript" (
    id                    text PRIMARY KEY,
    name                  text NOT NULL,
    description           text,
    "scriptType"          text NOT NULL DEFAULT 'ai',
    "aiGreeting"          text,
    "aiObjective"         text,
    "aiInstructions"      text,
    "aiPersonality"       text DEFAULT 'professional',
    "companyName"         text,
    "productName"         text,
    "productDescription"  text,
    "keyFeatures"         jsonb,
    "keyBenefits"         jsonb,
    "targetAudience"      text,
    "valueProposition"    text,
    "documentFileName"    text,
    "documentFilePath"    text,
    "documentFileSize"    integer,
    "documentMimeType"    text,
    "manualScript"        text,
    "isActive"            boolean NOT NULL DEFAULT true,
    "isDefault"           boolean NOT NULL DEFAULT false,
    "enableRecording"     boolean NOT NULL DEFAULT true,
    "enableTranscription" boolean NOT NULL DEFAULT true,
    "usageCount"          integer NOT NULL DEFAULT 0,
    "lastUsedAt"          timestamp(3),
    "createdAt"           timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"           timestamp(3) NOT NULL,
    "tenantId"            text NOT NULL REFERENCES "Tenant" ON UPDATE CASCADE ON DELETE CASCADE,
    "userId"              text NOT NULL REFERENCES "User" ON UPDATE CASCADE ON DELETE CASCADE
);
CREATE INDEX "CallScript_tenantId_idx" ON "CallScript" ("tenantId");
CREATE INDEX "CallScript_userId_idx" ON "CallScript" ("userId");
CREATE INDEX "CallScript_isActive_idx" ON "CallScript" ("isActive");
CREATE INDEX "CallScript_scriptType_idx" ON "CallScript" ("scriptType");

CREATE TABLE "CallLog" (
    id                       text PRIMARY KEY,
    "tenantId"               text NOT NULL REFERENCES "Tenant" ON UPDATE CASCADE ON DELETE CASCADE,
    "leadId"                 text REFERENCES "Lead" ON UPDATE CASCADE ON DELETE SET NULL,
    "contactId"              text REFERENCES "Contact" ON UPDATE CASCADE ON DELETE SET NULL,
    "phoneNumber"            text NOT NULL,
    "phoneCountryCode"       text NOT NULL DEFAULT '+91',
    direction                text NOT NULL,
    "callType"               text NOT NULL DEFAULT 'ai',
    "twilioCallSid"          text NOT NULL,
    "twilioStatus"           text NOT NULL,
    "twilioErrorCode"        text,
    "twilioErrorMessage"     text,
    duration                 integer,
    "startedAt"              timestamp(3),
    "endedAt"                timestamp(3),
    "answeredAt"             timestamp(3),
    transcript               text,
    summary                  text,
    sentiment                text,
    "aiModelUsed"            text,
    "aiTokensUsed"           integer,
    "aiCost"                 double precision,
    "meetingExtracted"       boolean DEFAULT false,
    "hasMeetingRequest"      boolean DEFAULT false,
    "meetingAgreed"          boolean DEFAULT false,
    "meetingType"            text,
    "meetingProposedDate"    timestamp(3),
    "meetingProposedTime"    text,
    "meetingDateTimeText"    text,
    "meetingDuration"        integer,
    "meetingPreferences"     text,
    "meetingNotes"           text,
    "meetingConfidence"      integer,
    "meetingReasonDeclined"  text,
    "meetingCalendarEventId" text,
    "meetingExtractionCost"  double precision,
    "callScriptId"           text REFERENCES "CallScript" ON UPDATE CASCADE ON DELETE SET NULL,
    "recordingUrl"           text,
    "recordingSid"           text,
    "recordingDuration"      integer,
    "triggerType"            text NOT NULL,
    "automationRuleId"       text REFERENCES "AutomationRule" ON UPDATE CASCADE ON DELETE SET NULL,
    "callOutcome"            text,
    "nextActionNeeded"       text,
    notes                    text,
    metadata                 jsonb,
    "createdById"            text NOT NULL REFERENCES "User" ON UPDATE CASCADE ON DELETE CASCADE,
    "createdAt"              timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"              timestamp(3) NOT NULL
);
CREATE UNIQUE INDEX "CallLog_twilioCallSid_key" ON "CallLog" ("twilioCallSid");
CREATE INDEX "CallLog_tenantId_leadId_idx" ON "CallLog" ("tenantId", "leadId");
CREATE INDEX "CallLog_tenantId_contactId_idx" ON "CallLog" ("tenantId", "contactId");
CREATE INDEX "CallLog_tenantId_phoneNumber_idx" ON "CallLog" ("tenantId", "phoneNumber");
CREATE INDEX "CallLog_twilioCallSid_idx" ON "CallLog" ("twilioCallSid");
CREATE INDEX "CallLog_twilioStatus_idx" ON "CallLog" ("twilioStatus");
CREATE INDEX "CallLog_callType_idx" ON "CallLog" ("callType");
CREATE INDEX "CallLog_direction_idx" ON "CallLog" (direction);
CREATE INDEX "CallLog_createdAt_idx" ON "CallLog" ("createdAt");
CREATE INDEX "CallLog_callOutcome_idx" ON "CallLog" ("callOutcome");

CREATE TABLE "CallQueue" (
    id                 text PRIMARY KEY,
    "tenantId"         text NOT NULL REFERENCES "Tenant" ON UPDATE CASCADE ON DELETE CASCADE,
    "leadId"           text REFERENCES "Lead" ON UPDATE CASCADE ON DELETE SET NULL,
    "contactId"        text REFERENCES "Contact" ON UPDATE CASCADE ON DELETE SET NULL,
    "phoneNumber"      text NOT NULL,
    "phoneCountryCode" text NOT NULL DEFAULT '+91',
    status             text NOT NULL DEFAULT 'pending',
    priority           integer NOT NULL DEFAULT 5,
    "callType"         text NOT NULL DEFAULT 'ai',
    "callScriptId"     text,
    "triggerType"      text NOT NULL,
    "triggerData"      jsonb,
    "automationRuleId" text REFERENCES "AutomationRule" ON UPDATE CASCADE ON DELETE SET NULL,
    attempts           integer NOT NULL DEFAULT 0,
    "maxAttempts"      integer NOT NULL DEFAULT 3,
    "lastAttemptAt"    timestamp(3),
    "nextRetryAt"      timestamp(3),
    "callLogId"        text REFERENCES "CallLog" ON UPDATE CASCADE ON DELETE SET NULL,
    "errorMessage"     text,
    "scheduledFor"     timestamp(3),
    metadata           jsonb,
    "createdById"      text NOT NULL REFERENCES "User" ON UPDATE CASCADE ON DELETE CASCADE,
    "createdAt"        timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"        timestamp(3) NOT NULL
);
CREATE UNIQUE INDEX "CallQueue_callLogId_key" ON "CallQueue" ("callLogId");
CREATE INDEX "CallQueue_tenantId_status_scheduledFor_idx" ON "CallQueue" ("tenantId", status, "scheduledFor");
CREATE INDEX "CallQueue_status_nextRetryAt_idx" ON "CallQueue" (status, "nextRetryAt");
CREATE INDEX "CallQueue_priority_idx" ON "CallQueue" (priority);
CREATE INDEX "CallQueue_leadId_idx" ON "CallQueue" ("leadId");
CREATE INDEX "CallQueue_contactId_idx" ON "CallQueue" ("contactId");
CREATE INDEX "CallQueue_createdAt_idx" ON "CallQueue" ("createdAt");
