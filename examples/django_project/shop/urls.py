"""The views of the shop: one adds an order, one shows what became of its confirmation."""

from typing import Any

from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path

from shop.tasks import confirm


def order(request: HttpRequest, number: int) -> JsonResponse:
    """Take an order; its confirmation is enqueued once the database has it."""
    enqueued: list[Any] = []
    with transaction.atomic():  # the order would be saved here
        transaction.on_commit(lambda: enqueued.append(confirm.enqueue(number)))
    return JsonResponse({"id": enqueued[0].id})


async def confirmation(request: HttpRequest, result_id: str) -> JsonResponse:
    """What became of a confirmation."""
    result = await confirm.aget_result(result_id)
    text = result.return_value if result.is_finished else None
    return JsonResponse({"status": result.status, "attempts": result.attempts, "text": text})


urlpatterns: list[Any] = [
    path("orders/<int:number>", order),
    path("confirmations/<str:result_id>", confirmation),
]
