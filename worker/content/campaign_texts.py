"""All that the messages of a campaign are made of, as its user entered it in the CRM."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignTexts:
    """A campaign's content. Two that are equal make the same messages.

    ``object``: a JSON column, which may hold anything.
    """

    id: str
    tenant_id: str
    name: str
    channel: str
    subject: str | None = None
    html: str | None = None
    text: str = ""
    whatsapp_message_type: str | None = None
    whatsapp_media_type: str | None = None
    whatsapp_media_url: str | None = None
    whatsapp_caption: str | None = None
    whatsapp_template_name: str | None = None
    whatsapp_template_language: str | None = None
    whatsapp_template_params: object = None
    utm_source: str | None = None
    utm_medium: str | None = None
    utm_campaign: str | None = None
    utm_term: str | None = None
    utm_content: str | None = None
    platform_utm_config: object = None  # {channel: {name: value}}, which wins over the utm_* columns
    auto_tag_links: bool = True
    use_short_links: bool = False
