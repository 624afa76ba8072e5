"""A service on the laptop that lists its photos."""

from dataclasses import dataclass

from micro_core import NotFound, Service


@dataclass
class ListRequest:
    album: str


@dataclass
class ListReply:
    photos: list[str]


ALBUMS = {"alps": ["summit.jpg", "hut.jpg"], "sea": ["harbour.jpg"]}

service = Service("go.micro.srv.photos")


@service.handler
class Photos:
    async def list(self, request: ListRequest) -> ListReply:
        """Return the names of the photos of an album. Raises NotFound if there is no such album."""
        if request.album not in ALBUMS:
            raise NotFound(f"no album {request.album!r:.40}", hint=f"albums: {', '.join(ALBUMS)}")
        return ListReply(photos=ALBUMS[request.album])


if __name__ == "__main__":
    service.run()
