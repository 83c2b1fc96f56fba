import java.io.ByteArrayInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;

/** java Early.java REQUESTS: each line has URL, key, bytes, and `length` or `chunked`. Prints a line for each: the status or the error. */
public class Early {
    public static void main(String[] words) throws Exception {
        HttpClient client = HttpClient.newHttpClient(); // offers HTTP/2 with Upgrade: h2c
        for (String line : Files.readAllLines(Path.of(words[0]))) {
            String[] fields = line.split(" ");
            byte[] body = new byte[Integer.parseInt(fields[2])];
            var publisher = fields[3].equals("chunked")
                ? BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(body))
                : BodyPublishers.ofByteArray(body);
            var request = HttpRequest.newBuilder(URI.create(fields[0])).timeout(Duration.ofSeconds(20)).POST(publisher);
            if (!fields[1].equals("-")) {
                request.header("X-API-Key", fields[1]);
            }
            try {
                System.out.println(client.send(request.build(), BodyHandlers.ofString()).statusCode());
            } catch (Exception error) {
                System.out.println(error.toString().replace('\n', ' '));
            }
        }
    }
}
