-- The part of the CRM's schema that the worker meets, with every constraint it can run into, and some columns
-- beside: the real tables have more. The CRM's own migrations make this; the worker must run against it unchanged.
-- Nothing gives an id or an "updatedAt"; times are UTC without a zone; what has a default is never null.

CREATE TYPE "UserRole" AS ENUM ('ADMIN', 'MANAGER', 'AGENT', 'VIEWER');
CREATE TYPE "TenantStatus" AS ENUM ('ACTIVE', 'SUSPENDED', 'TRIAL', 'CANCELLED');
CREATE TYPE "SubscriptionPlan" AS ENUM ('FREE', 'STANDARD', 'PROFESSIONAL', 'ENTERPRISE');
CREATE TYPE "StageType" AS ENUM ('LEAD', 'DEAL', 'BOTH');

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
    "logoUrl"           text,
    "createdAt"         timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"         timestamp(3) NOT NULL
);
CREATE UNIQUE INDEX "Tenant_slug_key" ON "Tenant" (slug);

CREATE TABLE "User" (
    id                  text PRIMARY KEY,
    email               text NOT NULL,
    password            text,
    name                text NOT NULL,
    company             text NOT NULL DEFAULT '',
    role                "UserRole" NOT NULL DEFAULT 'AGENT',
    "isActive"          boolean NOT NULL DEFAULT true,
    "tenantId"          text NOT NULL REFERENCES "Tenant" (id) ON UPDATE CASCADE ON DELETE RESTRICT,
    "googleEmail"       text,
    "gmailAccessToken"  text,
    "gmailRefreshToken" text,
    "gmailTokenExpiry"  timestamp(3),
    "gmailConnectedAt"  timestamp(3),
    "gmailScopes"       jsonb,
    "lastLoginAt"       timestamp(3),
    "createdAt"         timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"         timestamp(3) NOT NULL
);
CREATE UNIQUE INDEX "User_email_tenantId_key" ON "User" (email, "tenantId");

CREATE TABLE "PipelineStage" (
    id          text PRIMARY KEY,
    name        text NOT NULL,
    slug        text NOT NULL,
    color       text NOT NULL DEFAULT 'blue',
    "stageType" "StageType" NOT NULL DEFAULT 'BOTH',
    "order"     integer NOT NULL,
    "tenantId"  text NOT NULL,
    "isActive"  boolean NOT NULL DEFAULT true,
    "createdAt" timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" timestamp(3) NOT NULL
);
CREATE UNIQUE INDEX "PipelineStage_tenantId_slug_key" ON "PipelineStage" ("tenantId", slug);

CREATE TABLE "Lead" (
    id                   text PRIMARY KEY,
    name                 text NOT NULL,
    company              text NOT NULL,
    email                text NOT NULL,
    phone                text NOT NULL,
    "phoneCountryCode"   text NOT NULL DEFAULT '+91',
    "phoneNormalized"    text,
    whatsapp             text,
    "whatsappNormalized" text,
    source               text NOT NULL,
    status               text NOT NULL,
    priority             text NOT NULL,
    "estimatedValue"     double precision NOT NULL,
    "assignedTo"         text NOT NULL,
    notes                text NOT NULL DEFAULT '',
    tags                 text[],
    "leadScore"          integer NOT NULL DEFAULT 0,
    "tenantId"           text NOT NULL,
    "userId"             text NOT NULL REFERENCES "User" (id) ON UPDATE CASCADE ON DELETE RESTRICT,
    "stageId"            text NOT NULL REFERENCES "PipelineStage" (id) ON UPDATE CASCADE ON DELETE RESTRICT,
    "lastContactedAt"    timestamp(3),
    "lastCalledAt"       timestamp(3),
    "callCount"          integer NOT NULL DEFAULT 0,
    "createdAt"          timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"          timestamp(3) NOT NULL
);
CREATE INDEX "Lead_tenantId_idx" ON "Lead" ("tenantId");
CREATE INDEX "Lead_userId_idx" ON "Lead" ("userId");

CREATE TABLE "Contact" (
    id                   text PRIMARY KEY,
    name                 text NOT NULL,
    company              text NOT NULL,
    designation          text NOT NULL,
    email                text NOT NULL,
    phone                text NOT NULL,
    "phoneCountryCode"   text NOT NULL DEFAULT '+91',
    "phoneNormalized"    text,
    whatsapp             text,
    "whatsappNormalized" text,
    type                 text NOT NULL,
    industry             text NOT NULL,
    "companySize"        text NOT NULL,
    tags                 text[],
    notes                text NOT NULL DEFAULT '',
    "assignedTo"         text NOT NULL,
    "tenantId"           text NOT NULL,
    "userId"             text NOT NULL REFERENCES "User" (id) ON UPDATE CASCADE ON DELETE RESTRICT,
    "createdAt"          timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"          timestamp(3) NOT NULL
);
CREATE INDEX "Contact_tenantId_idx" ON "Contact" ("tenantId");
CREATE INDEX "Contact_userId_idx" ON "Contact" ("userId");

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
    "startedAt"                timestamp(3),
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
    "tenantId"                 text NOT NULL,
    "userId"                   text NOT NULL REFERENCES "User" (id) ON UPDATE CASCADE ON DELETE RESTRICT,
    "createdAt"                timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"                timestamp(3) NOT NULL
);
CREATE INDEX "Campaign_userId_idx" ON "Campaign" ("userId");
CREATE INDEX "Campaign_status_idx" ON "Campaign" (status);
CREATE INDEX "Campaign_scheduledAt_idx" ON "Campaign" ("scheduledAt");
CREATE INDEX "Campaign_channel_idx" ON "Campaign" (channel);
CREATE INDEX "Campaign_tenantId_idx" ON "Campaign" ("tenantId");

CREATE TABLE "CampaignRecipient" (
    id               text PRIMARY KEY,
    "tenantId"       text NOT NULL,
    "campaignId"     text NOT NULL REFERENCES "Campaign" (id) ON UPDATE CASCADE ON DELETE CASCADE,
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
    "campaignId" text NOT NULL,
    action       text NOT NULL,
    message      text NOT NULL,
    metadata     jsonb,
    "createdAt"  timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP
);

CREATE TABLE campaign_links (
    id             text PRIMARY KEY,
    "tenantId"     text NOT NULL,
    "campaignId"   text,
    "originalUrl"  text NOT NULL,
    "taggedUrl"    text NOT NULL,
    "shortCode"    text,
    "shortUrl"     text,
    "utmSource"    text,
    "utmMedium"    text,
    "utmCampaign"  text,
    "utmTerm"      text,
    "utmContent"   text,
    "linkText"     text,
    "linkPosition" text,
    platform       text,
    "totalClicks"  integer NOT NULL DEFAULT 0,
    "uniqueClicks" integer NOT NULL DEFAULT 0,
    "expiresAt"    timestamp(3),
    "createdAt"    timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"    timestamp(3) NOT NULL
);
CREATE UNIQUE INDEX "campaign_links_shortCode_key" ON campaign_links ("shortCode");

CREATE TABLE "EmailLog" (
    id               text PRIMARY KEY,
    "to"             text[],
    cc               text[] DEFAULT '{}',
    bcc              text[] DEFAULT '{}',
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
    "sentAt"         timestamp(3),
    "openedAt"       timestamp(3),
    "tenantId"       text NOT NULL,
    "userId"         text NOT NULL REFERENCES "User" (id) ON UPDATE CASCADE ON DELETE RESTRICT,
    "createdAt"      timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"      timestamp(3) NOT NULL
);

CREATE TABLE "EmailTemplate" (
    id            text PRIMARY KEY,
    name          text NOT NULL,
    description   text,
    type          text NOT NULL,
    subject       text NOT NULL,
    "htmlBody"    text NOT NULL,
    "isActive"    boolean NOT NULL DEFAULT true,
    "isDefault"   boolean NOT NULL DEFAULT false,
    "usageCount"  integer NOT NULL DEFAULT 0,
    "lastUsedAt"  timestamp(3),
    "tenantId"    text NOT NULL,
    "createdBy"   text NOT NULL,
    "createdAt"   timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"   timestamp(3) NOT NULL
);

CREATE TABLE "CallSettings" (
    id                    text PRIMARY KEY,
    "tenantId"            text NOT NULL,
    "twilioAccountSid"    text,
    "twilioAuthToken"     text,
    "twilioPhoneNumber"   text,
    "maxConcurrentCalls"  integer NOT NULL DEFAULT 5,
    "callTimeout"         integer NOT NULL DEFAULT 300,
    "enableRecording"     boolean NOT NULL DEFAULT true,
    "enableTranscription" boolean NOT NULL DEFAULT true,
    "enableBusinessHours" boolean NOT NULL DEFAULT true,
    "businessHoursStart"  text,
    "businessHoursEnd"    text,
    "businessDays"        jsonb,
    timezone              text NOT NULL DEFAULT 'Asia/Kolkata',
    "defaultCallScriptId" text,
    "webhookUrl"          text,
    "createdAt"           timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"           timestamp(3) NOT NULL
);
CREATE UNIQUE INDEX "CallSettings_tenantId_key" ON "CallSettings" ("tenantId");

CREATE TABLE "CallScript" (
    id                    text PRIMARY KEY,
    name                  text NOT NULL,
    description           text,
    "enableRecording"     boolean NOT NULL DEFAULT true,
    "enableTranscription" boolean NOT NULL DEFAULT true,
    "usageCount"          integer NOT NULL DEFAULT 0,
    "lastUsedAt"          timestamp(3),
    "tenantId"            text NOT NULL,
    "userId"              text NOT NULL,
    "createdAt"           timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"           timestamp(3) NOT NULL
);

CREATE TABLE "CallLog" (
    id                 text PRIMARY KEY,
    "tenantId"         text NOT NULL,
    "leadId"           text,
    "contactId"        text,
    "phoneNumber"      text NOT NULL,
    "phoneCountryCode" text,
    direction          text NOT NULL,
    "callType"         text NOT NULL DEFAULT 'ai',
    "twilioCallSid"    text NOT NULL,
    "twilioStatus"     text NOT NULL,
    duration           integer,
    "callScriptId"     text,
    "triggerType"      text NOT NULL,
    "automationRuleId" text,
    "callOutcome"      text,
    metadata           jsonb,
    "createdById"      text NOT NULL REFERENCES "User" (id) ON UPDATE CASCADE ON DELETE RESTRICT,
    "createdAt"        timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"        timestamp(3) NOT NULL
);
CREATE UNIQUE INDEX "CallLog_twilioCallSid_key" ON "CallLog" ("twilioCallSid");

CREATE TABLE "CallQueue" (
    id                 text PRIMARY KEY,
    "tenantId"         text NOT NULL,
    "leadId"           text REFERENCES "Lead" (id) ON UPDATE CASCADE ON DELETE SET NULL,
    "contactId"        text REFERENCES "Contact" (id) ON UPDATE CASCADE ON DELETE SET NULL,
    "phoneNumber"      text NOT NULL,
    "phoneCountryCode" text NOT NULL DEFAULT '+91',
    status             text NOT NULL DEFAULT 'pending',
    priority           integer NOT NULL DEFAULT 5,
    "callType"         text NOT NULL DEFAULT 'ai',
    "callScriptId"     text,
    "triggerType"      text NOT NULL,
    "automationRuleId" text,
    attempts           integer NOT NULL DEFAULT 0,
    "maxAttempts"      integer NOT NULL DEFAULT 3,
    "lastAttemptAt"    timestamp(3),
    "nextRetryAt"      timestamp(3),
    "callLogId"        text REFERENCES "CallLog" (id) ON UPDATE CASCADE ON DELETE SET NULL,
    "errorMessage"     text,
    "scheduledFor"     timestamp(3),
    metadata           jsonb,
    "createdById"      text NOT NULL REFERENCES "User" (id) ON UPDATE CASCADE ON DELETE RESTRICT,
    "createdAt"        timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"        timestamp(3) NOT NULL
);
CREATE UNIQUE INDEX "CallQueue_callLogId_key" ON "CallQueue" ("callLogId");
CREATE INDEX "CallQueue_tenantId_status_scheduledFor_idx" ON "CallQueue" ("tenantId", status, "scheduledFor");
CREATE INDEX "CallQueue_status_nextRetryAt_idx" ON "CallQueue" (status, "nextRetryAt");
CREATE INDEX "CallQueue_priority_idx" ON "CallQueue" (priority);
CREATE INDEX "CallQueue_createdAt_idx" ON "CallQueue" ("createdAt");
