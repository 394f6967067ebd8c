"""What columns of logs are called in the wild, most telling name first, for each field of the contract.

Names are compared without case, spaces and punctuation: `CustomerID`, `customer_id` and `Customer ID` are one name.
"""

from __future__ import annotations

from sonder.events.contract import Col


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES: dict[str, tuple[str, ...]] = {
    Col.USER_ID: _words(
        """
        userid user uid useridx customerid customer custid clientid client householdid householdkey
        household visitorid visitor memberid member accountid account msno subscriberid profileid personid
        reviewerid authorid author buyerid shopperid playerid fullvisitorid anonymousid distinctid deviceid
        cookieid cookie usersession sessionid session
        """
    ),
    Col.ITEM_ID: _words(
        """
        itemid item sku stockcode productid product movieid movie asin parentasin articleid article trackid
        track songid song videoid video contentid content bookid book isbn newsid postid photoid pinid
        businessid venueid poiid listingid hotelid propertyid adid creativeid appid gameid game showid
        episodeid documentid docid recipeid courseid jobid materialid offerid goodsid itemcode pageurl url
        title
        """
    ),
    Col.TIMESTAMP: _words(
        """
        timestamp ts eventtime eventtimestamp datetime time occurredat createdat timestampms timems
        servertime clienttime eventdatetime eventts invoicedate orderdate purchasedate transactiondate tdat
        tsms unixreviewtime reviewtime unixtime epoch receivedat loggedat date day dt reviewdate eventdate
        position order
        """
    ),
    Col.ACTION: _words(
        """
        action event eventtype eventname actiontype behavior behaviortype behaviour behaviourtype
        interactiontype interaction activity activitytype verb type kind
        """
    ),
    Col.EVENT_ID: _words(
        """
        eventid eventuuid uuid messageid insertid logid rowid id
        """
    ),
    Col.SURFACE: _words(
        """
        surface page placement channel saleschannelid screen platform widget module referrer medium source
        """
    ),
    Col.VALUE: _words(
        """
        value price unitprice amount revenue rating overall stars score salesvalue sales spend total cost
        dollarvalue dwelltime dwell duration playtime watchtime seconds quantity qty
        """
    ),
    Col.REQUEST_ID: _words(
        """
        requestid impressionid sessionid session usersession basketid orderid invoiceno invoice cartid
        transactionid
        """
    ),
}

# Most telling wanted action first: what a product would like to see coming.
TELLING_ACTIONS = _words(
    """
        buy purchase purchased order ordered transaction checkout conversion convert subscribe subscription
        book booking install signup apply deposit pay payment addtocart cart basket add save favorite
        favourite fav bookmark wishlist like follow share repin rate rating review comment complete finish
        watch play listen stream read download open click tap view pv detail visit search
        """
)


def plain(name: str) -> str:
    """A name without case, spaces and punctuation."""
    return "".join(char for char in name.lower() if char.isalnum())


def name_score(field: str, column: str) -> float:
    """How much a column's name speaks for a field: 1 for the best known name, 0 for none."""
    known = NAMES[field]
    candidates = {plain(column), plain(column.rpartition(".")[2])}
    exact = [known.index(name) for name in candidates if name in known]
    if exact:
        return 1.0 - 0.5 * min(exact) / len(known)
    parts = [name for name in known if len(name) > 4 and any(name in candidate for candidate in candidates)]
    return 0.3 if parts else 0.0
