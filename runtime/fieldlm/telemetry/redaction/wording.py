"""What the files of redaction share: words that say what a number counts."""

import re

CJK = r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
"""Chinese, Japanese and Korean put no space between a word and a number."""

ORDERED = re.compile(
    r"\b(?:order|ticket|invoice|tracking|parcel|package|shipment|barcode|bar code|ean|upc|isbn|issn|sku|serial|article|"
    r"item|build|version|firmware|reference|ref|booking|case|doi|flight|train|zug|bus|line|platform|room|seat|gate|model|bestell|rechnung|sendung|artikel|"
    r"auftrag|vorgang|commande|facture|colis|pedido|factura|paquete|ordine|fattura|bestelling|factuur|encomenda|fatura|"
    r"zamówieni|заказ|накладн|замовлен)\w*(?:(?:nr|no)\.|[^.!?\d]){0,24}$"
    r"|(?:订单|訂單|注文|注文番号|주문|快递|运单)[^.!?。\d]{0,12}$"
    r"|[#№]\s?$",
    re.I,
)
