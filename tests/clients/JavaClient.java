// Java's own HTTP client as it comes: it asks every server for HTTP/2 with its first request (Upgrade: h2c).
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.stream.Collectors;

public class JavaClient {
    public static void main(String[] args) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (String stream : new String[] {"false", "true"}) {
            String body = "{\"model\": \"" + args[1] + "\", \"max_tokens\": 8, \"stream\": " + stream
                + ", \"messages\": [{\"role\": \"user\", \"content\": \"Name a colour.\"}]}";
            HttpRequest request = HttpRequest.newBuilder(URI.create(args[0] + "/v1/chat/completions"))
                .header("Content-Type", "application/json").POST(HttpRequest.BodyPublishers.ofString(body)).build();
            HttpResponse<java.util.stream.Stream<String>> reply =
                client.send(request, HttpResponse.BodyHandlers.ofLines());
            String said = reply.body().collect(Collectors.joining("\n"));
            if (reply.statusCode() != 200 || !said.contains("\"content\"")) {
                throw new IllegalStateException(reply.statusCode() + " " + said);
            }
            if (stream.equals("true") && !said.strip().endsWith("data: [DONE]")) {
                throw new IllegalStateException(said);
            }
        }
        System.out.println("chat, stream");
    }
}
