"""A service in the cloud that calls the laptop's service by name."""

from dataclasses import dataclass

from micro_core import Service


@dataclass
class ShowRequest:
    album: str


@dataclass
class ShowReply:
    title: str


@dataclass
class Photos:
    photos: list[str]


service = Service("go.micro.srv.gallery")


@service.handler
class Gallery:
    async def show(self, request: ShowRequest) -> ShowReply:
        """Return a one-line description of an album."""
        found: Photos = await service.client.call(
            "go.micro.srv.photos", "Photos.List", {"album": request.album}, response_type=Photos
        )
        return ShowReply(title=f"{request.album}: {len(found.photos)} photos, {', '.join(found.photos)}")


if __name__ == "__main__":
    service.run()
