"""A campaign, as the worker needs it to send it."""

from dataclasses import dataclass
from datetime import datetime

from worker.content.campaign_texts import CampaignTexts
from worker.runtime.db import Row
from worker.sending.accounts import EmailUser


@dataclass(frozen=True, slots=True)
class CampaignTarget:
    """Whom a campaign without recipients is for. ``filters`` is a JSON column, which may hold anything."""

    kind: str
    filters: object


@dataclass(frozen=True, slots=True)
class Campaign:
    """A row of the statement ``campaign``. Without a run of the worker's it counts as prepared."""

    texts: CampaignTexts
    target: CampaignTarget
    user: EmailUser
    user_id: str  # as the campaign names it; ``user.user_id`` is None when the tenant has no such user
    prepared: bool
    backoffs: int  # in a row; 0 after a batch without one
    started_at: datetime | None  # of the run
    moved: bool = False  # to another tenant than the one that its run was started for, whose campaign this is
    has_accepted: bool = False  # a message of the run was accepted
    timezone: str | None = None  # of the tenant, as it entered it for its calls
    text_bytes: int = 0  # of the texts that messages are made of; they are not read when that is too much

    @property
    def id(self) -> str:
        return self.texts.id

    @property
    def channel(self) -> str:
        return self.texts.channel

    @property
    def tenant_id(self) -> str:
        return self.user.tenant_id

    @classmethod
    def from_row(cls, row: Row) -> "Campaign":
        return cls(
            texts=_texts(row),
            target=CampaignTarget(row["targetType"], row["targetFilters"]),
            user=_user(row),
            user_id=row["userId"],
            prepared=row["prepared"],
            backoffs=row["backoffs"],
            started_at=row["started_at"],
            moved=row["moved"],
            has_accepted=row["has_accepted"],
            timezone=row["timezone"],
            text_bytes=row["text_bytes"],
        )


def _user(row: Row) -> EmailUser:
    return EmailUser(
        user_id=row["user_id"],
        user_name=row["user_name"],
        user_email=row["user_email"],
        tenant_id=row["tenantId"],
        tenant_name=row["tenant_name"],
        tenant_settings=row["tenant_settings"],
        google_email=row["googleEmail"],
        gmail_access_token=row["gmailAccessToken"],
        gmail_refresh_token=row["gmailRefreshToken"],
        gmail_token_expiry=row["gmailTokenExpiry"],
    )


def _texts(row: Row) -> CampaignTexts:
    return CampaignTexts(
        id=row["id"],
        tenant_id=row["tenantId"],
        name=row["name"],
        channel=row["channel"],
        subject=row["subject"],
        html=row["htmlContent"],
        text=row["textContent"],
        whatsapp_message_type=row["whatsappMessageType"],
        whatsapp_media_type=row["whatsappMediaType"],
        whatsapp_media_url=row["whatsappMediaUrl"],
        whatsapp_caption=row["whatsappCaption"],
        whatsapp_template_name=row["whatsappTemplateName"],
        whatsapp_template_language=row["whatsappTemplateLanguage"],
        whatsapp_template_params=row["whatsappTemplateParams"],
        utm_source=row["utmSource"],
        utm_medium=row["utmMedium"],
        utm_campaign=row["utmCampaign"],
        utm_term=row["utmTerm"],
        utm_content=row["utmContent"],
        platform_utm_config=row["platformUtmConfig"],
        auto_tag_links=row["autoTagLinks"],
        use_short_links=row["useShortLinks"],
    )
