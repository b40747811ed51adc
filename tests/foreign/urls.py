"""The toolkit's own views under ``/o/``, and one resource that its own decorator protects."""

from django.http import HttpRequest, JsonResponse
from django.urls import include, path
from django.views.decorators.csrf import csrf_exempt
from oauth2_provider.decorators import protected_resource_metadata


@csrf_exempt
@protected_resource_metadata(scopes=["all"])
def accounts(request: HttpRequest) -> JsonResponse:
    """Tell whose accounts these are; 401 without a valid token."""
    owner = request.resource_owner
    answer = {"owner": owner and owner.get_username(), "received": request.body.decode(), "accounts": []}
    return JsonResponse(answer)


urlpatterns = [
    path("o/", include("oauth2_provider.urls", namespace="oauth2_provider")),
    path("api/v2/accounts", accounts),
]
