"""The tables by the names of the models."""

from __future__ import annotations

from histojax.weights.names import Table
from histojax.weights.tables import densenet, resnet, swin, vgg, vit

TABLES: dict[str, Table] = {
    table.model: table for table in (*resnet.TABLES, *densenet.TABLES, *vgg.TABLES, *vit.TABLES, *swin.TABLES)
}
